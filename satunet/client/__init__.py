"""A client of ``satunet serve`` that needs the standard library alone: no torch, no NumPy.

::

    from satunet.client import Server

    with Server("http://127.0.0.1:8000").bring("ct.nii.gz") as scan:
        scan.ask("liver", "left kidney").save("masks")
        scan.ask("spleen").save("masks")  # the scan is known by now: this is quick
"""

from satunet.client.remote import RemoteJob, RemoteScan, Server
from satunet.client.requests import ServerError

__all__ = ["RemoteJob", "RemoteScan", "Server", "ServerError"]
