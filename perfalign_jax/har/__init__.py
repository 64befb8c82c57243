"""Human action recognition: a real dataset, transfer between its sensors, trained encoders.

- ``data``: UTD-MHAD's files, its clips in memory, a simulated stand-in, and who is used for what;
- ``protocol``: what a method may see, every method of transfer, and what their scores say;
- ``nn``: encoders, their batches and their training; the only part that needs Flax and Orbax.
"""
