"""Stand-ins for classes of other libraries, none of which has to be installed."""
