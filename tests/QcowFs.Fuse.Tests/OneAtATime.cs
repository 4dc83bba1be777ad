// The kernel gives the number of a FUSE connection that has ended to the next one, so a test that aborts its own by number could end
// that of a test beside it.

[assembly: CollectionBehavior(DisableTestParallelization = true)]
