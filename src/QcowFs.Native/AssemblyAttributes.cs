// Every native signature in this assembly is blittable: what is declared is what is called, with no hidden copies.
[assembly: System.Runtime.CompilerServices.DisableRuntimeMarshalling]
