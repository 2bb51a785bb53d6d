"""A reader for each data set, loaded when it is asked for."""
