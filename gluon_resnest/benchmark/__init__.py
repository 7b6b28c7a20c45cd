"""Time of networks beside their peers, each in a process of its own, in turns."""
