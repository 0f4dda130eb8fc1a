"""The command line: click and rich live only here. Each command builds objects and calls the library."""
