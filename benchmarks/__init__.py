"""Time of networks and input pipelines beside their peers, in processes of their own, in turns."""
