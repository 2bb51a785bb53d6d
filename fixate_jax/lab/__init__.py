"""The laboratory on top of the library: settings, run directories, the command line."""
