// Every file here is a test of xunit.
global using Xunit;
