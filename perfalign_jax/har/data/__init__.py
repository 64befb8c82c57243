"""Recordings, real and simulated, and which clip has which role.

- ``utd_mhad``: UTD-MHAD's files as its authors laid them out;
- ``dataset``: its clips in memory, at fixed length;
- ``simulate``: a simulated dataset in the same files, for those who do not have the real one;
- ``splits``: which clip has which role.
"""
