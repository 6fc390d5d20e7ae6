"""Physical memory: drivers in C++, the node daemon that owns every page, and the client that engines hold."""
