// Like all of QcowFs, these tests run on Linux.
using System.Runtime.Versioning;

[assembly: SupportedOSPlatform("linux")]
