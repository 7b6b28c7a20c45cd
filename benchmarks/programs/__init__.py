"""What the contestants' processes run.

These files are started by their path, in environments without gluon_resnest: all but run_ours.py,
run_our_pipeline.py and run_sgemm.py know only the library that they time, and import one another
as neighbours in a folder.
"""
