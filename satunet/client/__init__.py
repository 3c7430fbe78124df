"""A client of ``satunet serve`` that needs only the standard library: no torch, no NumPy.

::

    from satunet.client import Server

    with Server("http://127.0.0.1:8000").bring("ct.nii.gz") as scan:
        scan.ask("liver", "left kidney").save("masks")
        scan.ask("spleen").save("masks")  # quick, because the server knows the scan
"""

from satunet.client.remote import RemoteJob, RemoteScan, Server
from satunet.client.requests import ServerError

__all__ = ["RemoteJob", "RemoteScan", "Server", "ServerError"]
