"""DICOMweb: fetch series from an archive as files, and store results in it.

Series are fetched as they are stored (``transfer-syntax=*``): the archive need not know their compression, and nothing
is lost. Each instance is kept under its UID, so that a second call fetches only what is missing. Instances of another
series than the requested one are discarded.

Rejected: one request per instance from the start, which takes minutes over a slow connection, and one request alone,
of which nothing remains when the connection breaks.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from satunet.errors import DiskFullError, EnvironmentProblemError, UserError
from satunet.images.dicom.headers import quiet
from satunet.images.dicom.series import Series, modality_of, search
from satunet.jobs.files import atomic_path

logger = logging.getLogger(__name__)

_UID = re.compile(r"[0-9]+(\.[0-9]+)*")
_AS_STORED = (("application/dicom", "*"),)
_SECONDS_TO_CONNECT, _SECONDS_OF_SILENCE = 20.0, 300.0
_TRY_AGAIN = (429, 503, 504)
"""HTTP status codes of a busy archive."""
_PAGE = 1000
_STUDY, _SERIES, _INSTANCE, _MODALITY = "0020000D", "0020000E", "00080018", "00080060"


class ArchiveError(UserError):
    """An archive that cannot be reached, refuses, or has no such study."""


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Credentials for an archive; never on the command line, where other users of the machine could read them.

    Attributes:
        user: Name for HTTP's basic authentication.
        password: Password of the user.
        token: Bearer token, instead of user and password.
    """

    user: str | None = None
    password: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Credentials:
        """From ``DICOMWEB_USER`` and ``DICOMWEB_PASSWORD``, or ``DICOMWEB_TOKEN``; without them, ``.netrc`` is used."""
        found = os.environ if environment is None else environment
        user, password, token = (found.get(f"DICOMWEB_{n}") or None for n in ("USER", "PASSWORD", "TOKEN"))
        return cls(user=user, password=password, token=token)


@dataclass(frozen=True, kw_only=True)
class StoredSeries:
    """A series stored in an archive.

    Attributes:
        study: StudyInstanceUID.
        uid: SeriesInstanceUID.
        modality: DICOM's modality, such as ``CT`` or ``SEG``.
    """

    study: str
    uid: str
    modality: str

    @property
    def is_scan(self) -> bool:
        """Whether its modality has images that may be volumes."""
        return modality_of(self.modality) != "other"


class Archive:
    """An archive that speaks DICOMweb.

    Args:
        address: Base URL of its services, such as ``http://127.0.0.1:8042/dicom-web``.
        credentials: Credentials; those in the environment if not given.

    Raises:
        ArchiveError: The address is not a URL.
        EnvironmentProblemError: dicomweb-client is not installed.
    """

    def __init__(self, address: str, credentials: Credentials | None = None) -> None:
        try:
            import requests
            from dicomweb_client.web import DICOMwebClient
            from urllib3 import Retry
        except ImportError as error:
            raise EnvironmentProblemError(f"DICOMweb needs {error.name}: pip install 'satunet[dicomweb]'") from error
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ArchiveError(f"DICOMweb's address is like http://127.0.0.1:8042/dicom-web, got {address!r}")
        if parts.username or parts.password:
            raise ArchiveError(
                "DICOMweb's address must have no name and password, because logs would record them: set DICOMWEB_USER and "
                "DICOMWEB_PASSWORD, or DICOMWEB_TOKEN"
            )
        self.address = address.rstrip("/")
        session = requests.Session()
        who = credentials or Credentials.of_environment()
        if who.token is not None:
            session.auth = _bearer(who.token)
        elif who.user is not None:
            session.auth = (who.user, who.password or "")
        for noisy in ("dicomweb_client", "retrying", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # our errors say what they would log
        # dicomweb-client would try for half a minute where nothing listens.
        again = Retry(total=4, connect=1, backoff_factor=0.5, status_forcelist=_TRY_AGAIN, raise_on_status=False)
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
        self._client = DICOMwebClient(self.address, session=session, timeout=(_SECONDS_TO_CONNECT, _SECONDS_OF_SILENCE))
        self._client.set_http_retry_params(retry=False)
        self._broken: tuple[type[Exception], ...] = (requests.exceptions.RequestException,)

    def series(self, study: str) -> list[StoredSeries]:
        """All series of a study.

        Raises:
            ArchiveError: There is no such study, or the archive cannot be reached.
        """
        _check_uid("study", study)
        found = self._all(self._client.search_for_series, _SERIES, study_instance_uid=study)
        if not found:
            raise ArchiveError(f"{self.address} has no study {study}")
        return [StoredSeries(study=study, uid=uid, modality=_value(entry, _MODALITY)) for uid, entry in found.items()]

    def fetch(self, stored: StoredSeries, folder: Path) -> list[Series]:
        """Fetch a series into a folder of its own; instances that are there already are not fetched again.

        Returns:
            The series as :func:`~satunet.images.dicom.series.search` finds it; none if it was never meant to be a
            volume. An error becomes the :attr:`~satunet.images.dicom.series.Series.fault` of the series, and reading
            the series raises it; the other series of the study are still fetched.
        """
        folder.mkdir(parents=True, exist_ok=True)
        fault = self._fill(stored, folder)
        if not fault:
            found = search(folder)
            for what, reason in found.passed_over.items():
                logger.warning("%s: passed over: %s", what, reason)
            return list(found.series)
        files = tuple(sorted(folder.glob("*.dcm")))
        return [Series(uid=stored.uid, files=files, modality=modality_of(stored.modality), fault=fault)]

    def store(self, file: Path) -> None:
        """Store an object; an object that is already there is left as it is.

        Raises:
            ArchiveError: The archive refuses, or cannot be reached.
        """
        import pydicom

        dataset = pydicom.dcmread(file)
        try:
            answer = self._client.store_instances([dataset])
        except Exception as error:
            raise ArchiveError(f"{file.name} was not stored: {self._told(error)}") from error
        refused = [int(item.get("FailureReason") or 0) for item in answer.get("FailedSOPSequence") or []]
        if refused:
            raise ArchiveError(f"{file.name} was not stored: {self.address} refuses it (reason {refused[0]:04X})")

    def _fill(self, stored: StoredSeries, folder: Path) -> str:
        """Fetch the missing instances; returns why some are still missing, or ``""``."""
        try:
            known = self._all(
                self._client.search_for_instances,
                _INSTANCE,
                study_instance_uid=stored.study,
                series_instance_uid=stored.uid,
            )
            wanted = {uid for uid in known if _UID.fullmatch(uid)}
            if len(wanted) < len(known) or not wanted:
                return (
                    "the archive lists no instances of it" if not known else "the archive lists instances without a UID"
                )
            if not any((folder / f"{uid}.dcm").is_file() for uid in wanted):
                self._fetch_all(stored, folder)
            for uid in sorted(u for u in wanted if not (folder / f"{u}.dcm").is_file()):
                given = self._client.retrieve_instance(stored.study, stored.uid, uid, media_types=_AS_STORED)
                _keep([given], stored, folder)
            missing = sum(not (folder / f"{uid}.dcm").is_file() for uid in wanted)
        except DiskFullError:
            raise
        except ArchiveError as error:
            return str(error)
        except Exception as error:  # whatever the archive answers becomes this series' fault
            return self._told(error)
        return f"{missing} of its {len(wanted)} images could not be fetched from the archive" if missing else ""

    def _fetch_all(self, stored: StoredSeries, folder: Path) -> None:
        """Fetch all instances in one request; if it breaks off, keep what arrived and request the rest one by one."""
        try:
            _keep(self._client.iter_series(stored.study, stored.uid, media_types=_AS_STORED), stored, folder)
        except self._broken as error:
            logger.debug("series %s was fetched only in part (%s)", stored.uid, self._told(error))

    def _all(self, search_for: Any, key: str, **where: str) -> dict[str, dict[str, Any]]:
        """UID → entry, page by page; also where the archive returns smaller pages or ignores the offset."""
        found: dict[str, dict[str, Any]] = {}
        while True:
            try:
                page = search_for(**where, limit=_PAGE, offset=len(found))
                new = {_value(entry, key): entry for entry in page}
            except Exception as error:
                raise ArchiveError(self._told(error)) from error
            if not new.keys() - found.keys():
                return found
            found |= new

    def _told(self, error: Exception) -> str:
        """The error in one sentence."""
        answer = getattr(error, "response", None)
        status = getattr(answer, "status_code", None)
        if status in (401, 403):
            how = "set DICOMWEB_USER and DICOMWEB_PASSWORD, or DICOMWEB_TOKEN"
            return f"{self.address} does not admit this user (status {status}): {how}"
        if status is not None:
            what = "is it a DICOMweb address?" if status in (404, 405) else str(getattr(answer, "reason", ""))
            return f"{self.address} answers with status {status}: {what}"
        if isinstance(error, self._broken) and "JSON" not in type(error).__name__:
            text = str(error) or type(error).__name__
            system = re.search(r"\[Errno -?\d+\] ([^)\]\"']+)", text)  # after names of libraries' classes
            return f"{self.address} does not answer ({system[1].strip() if system else text.splitlines()[0]})"
        return f"{self.address} gives an answer that is not DICOMweb ({type(error).__name__})"


def _bearer(token: str) -> Any:
    """Bearer authentication for requests; a plain header would be overwritten by an entry of ``.netrc``."""

    def sign(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    return sign


def _check_uid(what: str, uid: str) -> None:
    if not _UID.fullmatch(uid) or len(uid) > 64:
        raise ArchiveError(f"a {what} is named by its UID, digits and dots, at most 64; got {uid!r}")


def _value(entry: Mapping[str, Any], key: str) -> str:
    values = (entry.get(key) or {}).get("Value") or [""]
    return str(values[0])


def _keep(datasets: Iterator[Any] | Sequence[Any], stored: StoredSeries, folder: Path) -> None:
    for dataset in datasets:
        with quiet():
            own = str(dataset.get("StudyInstanceUID")), str(dataset.get("SeriesInstanceUID"))
            uid = str(dataset.get("SOPInstanceUID"))
            if own != (stored.study, stored.uid) or not _UID.fullmatch(uid):
                continue  # of another series, possibly of another patient
            with atomic_path(folder / f"{uid}.dcm") as file:
                dataset.save_as(file, enforce_file_format=True)
