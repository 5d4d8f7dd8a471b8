"""Object storage through obstore: opened by URL, with errors that say what to do and hold no credentials.

Credentials, region and endpoint are those of the environment, as obstore reads them: ``AWS_ACCESS_KEY_ID``,
``AWS_SECRET_ACCESS_KEY``, ``AWS_REGION``, ``AWS_ENDPOINT_URL``, ``AWS_SKIP_SIGNATURE=true`` for public buckets;
``GOOGLE_SERVICE_ACCOUNT``; ``AZURE_STORAGE_ACCOUNT_NAME`` and ``AZURE_STORAGE_ACCOUNT_KEY``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from fnmatch import fnmatchcase
from hashlib import blake2b
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path, PosixPath
from typing import Any, Self
from urllib.parse import urlsplit, urlunsplit

from scdataloader.errors import SourceChangedError, SourceFormatError
from scdataloader.runtime.options import RemoteOptions

SCHEMES = ("s3", "gs", "az", "https", "http")
"""Schemes of URLs that can be opened."""
ALLOW_HTTP = "SCDATALOADER_ALLOW_HTTP"
"""Environment variable: 1 allows connections without TLS to other machines."""
RETRY_S = 60
"""Seconds after which a request that fails is not tried again."""
REQUEST_S = 30
"""Seconds of one try of a request; then the connection is taken for broken."""
_CONNECT_S = 5
_CONNECTIONS = 1024
"""Idle connections that are kept for each host."""
_IN_FLIGHT = 64
"""Requests for the states of objects that wait for answers at once."""
_PART_BYTES = 16 << 20
"""Parts in which large files are written."""
_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/+")
_LOST_SLASH = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*):/(?!/)")
_GLOB = re.compile(r"(\*\*/|\*|\[[^\]]+\])")
_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true for a public bucket",
    "gs": "GOOGLE_SERVICE_ACCOUNT, or GOOGLE_SKIP_SIGNATURE=true for a public bucket",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_SKIP_SIGNATURE=true",
}
_ENDPOINTS = {
    "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"),
    "gs": ("GOOGLE_BASE_URL",),
    "az": ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"),
}
"""Environment variables that name another server than the provider's."""
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
_NO_CREDENTIALS = re.compile(
    r"169\.254\.|metadata\.google|latest/api/token|Account must be specified|InvalidAccessKeyId|credential",
    re.IGNORECASE,
)
_WRONG_REGION = re.compile(r"redirect|AuthorizationHeaderMalformed|IllegalLocationConstraint", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectState:
    """A stored object."""

    path: str
    """Its path, relative to the bucket that was opened."""
    n_bytes: int
    etag: str | None
    """Changes whenever the object is written; None if the server states none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """A folder of object storage, or of a web server."""

    url: str
    """URL without a slash at the end."""
    store: Any
    """Store of obstore, whose paths are relative to ``url``."""

    @classmethod
    def open(cls, url: str) -> Self:
        """Make a client; nothing is sent yet.

        Raises:
            ModuleNotFoundError: obstore is not installed.
            ValueError: the URL has another scheme, credentials or a query, or would be read without TLS.
            PermissionError: no account is known.
        """
        url = checked_url(url)
        try:
            module = import_module("obstore.store")
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{url} is in object storage, which needs obstore: pip install 'scdataloader[remote]'"
            ) from error
        timeouts = {"timeout": f"{REQUEST_S}s", "connect_timeout": f"{_CONNECT_S}s"}
        options = {"pool_max_idle_per_host": str(_CONNECTIONS), **timeouts}
        with explained(url):
            store = module.from_url(
                url,
                client_options={**options, "allow_http": _may_skip_tls(url)},
                retry_config={"max_retries": 10, "retry_timeout": timedelta(seconds=RETRY_S)},
            )
        return cls(url=url, store=store)

    def __reduce__(self) -> tuple[Any, ...]:
        return Bucket.open, (self.url,)  # in another process, with the credentials of its environment

    def url_of(self, path: str) -> str:
        """URL of an object."""
        return f"{self.url}/{path}" if path else self.url

    def state(self, path: str) -> ObjectState:
        """Size and ETag of an object.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with explained(self.url_of(path)):
            found = import_module("obstore").head(self.store, path)
        return ObjectState(path=path, n_bytes=found["size"], etag=found["e_tag"])

    def read(self, path: str) -> bytes:
        """All bytes of an object.

        Raises:
            FileNotFoundError: it does not exist.
        """
        with explained(self.url_of(path)):
            return bytes(import_module("obstore").get(self.store, path).bytes())

    def listed(self, prefix: str = "") -> list[ObjectState]:
        """The objects in a folder and its folders, sorted by path.

        Raises:
            ValueError: it is a web server, which has no listing.
        """
        if self.url.startswith("http"):
            raise ValueError(f"{self.url} is a web server, which cannot be listed; name every file")
        with explained(self.url_of(prefix)):
            found = [one for page in import_module("obstore").list(self.store, prefix or None) for one in page]
        states = (ObjectState(path=one["path"], n_bytes=one["size"], etag=one["e_tag"]) for one in found)
        return sorted(states, key=lambda state: state.path)

    def names(self) -> list[str]:
        """Names of the objects and folders in the folder itself, sorted."""
        with explained(self.url):
            found = import_module("obstore").list_with_delimiter(self.store)
        folders = (prefix.rstrip("/").rpartition("/")[2] for prefix in found["common_prefixes"])
        return sorted([*folders, *(one["path"].rpartition("/")[2] for one in found["objects"])])

    def states(self, paths: Sequence[str]) -> dict[str, ObjectState]:
        """The states of those of the objects that exist, requested together."""

        def state(path: str) -> ObjectState | None:
            try:
                return self.state(path)
            except FileNotFoundError:
                return None

        with ThreadPoolExecutor(min(_IN_FLIGHT, max(1, len(paths)))) as threads:
            return {found.path: found for found in threads.map(state, paths) if found is not None}

    def download(self, path: str, file: Path) -> None:
        """Write an object to a file, which an error removes.

        Raises:
            FileNotFoundError: the object does not exist.
        """
        try:
            with explained(self.url_of(path)), file.open("wb") as out:
                for piece in import_module("obstore").get(self.store, path).stream(min_chunk_size=_PART_BYTES):
                    out.write(piece)
        except BaseException:
            file.unlink(missing_ok=True)
            raise

    def upload(self, file: Path, path: str) -> ObjectState:
        """Write a file as an object, which is seen when it is complete; large ones in parts."""
        with explained(self.url_of(path)), file.open("rb") as content:
            put = import_module("obstore").put(self.store, path, content, chunk_size=_PART_BYTES, max_concurrency=4)
        return ObjectState(path=path, n_bytes=file.stat().st_size, etag=put["e_tag"])

    def replace(self, path: str, content: bytes, etag: str | None) -> None:
        """Write an object in place of the one with an ETag, or, without one, where there is none.

        Raises:
            FileExistsError: there is one.
            SourceChangedError: it was written since it had the ETag.
        """
        mode: Any = "create" if etag is None else {"e_tag": etag}
        with explained(self.url_of(path)):
            import_module("obstore").put(self.store, path, content, mode=mode)

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects."""
        if paths:
            with explained(self.url):
                import_module("obstore").delete(self.store, list(paths))


class RemotePath(PosixPath):
    """A URL as a path: its text is the URL, and it has a name, a suffix, parents and parts."""

    def __str__(self) -> str:
        return as_url(super().__str__())

    def absolute(self) -> Self:
        """The path."""
        return self

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        bucket = Bucket.open(str(self.parent))
        try:
            bucket.state(self.name)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether a bucket has objects below it; False of a web server, which has no listing."""
        return not str(self).startswith("http") and next(self.iterdir(), None) is not None

    def iterdir(self) -> Generator[Self, None, None]:
        """The objects and folders in a folder of a bucket."""
        for name in Bucket.open(str(self)).names():
            yield self / name

    def glob(self, pattern: str, **options: Any) -> Generator[Self, None, None]:
        """Those below it whose path matches a pattern without "**"."""
        first, _, rest = pattern.partition("/")
        for child in self.iterdir():
            if fnmatchcase(child.name, first):
                yield from child.glob(rest, **options) if rest else (child,)

    def read_text(self, encoding: str | None = None, errors: str | None = None, **_options: Any) -> str:
        """The content of an object."""
        return Bucket.open(str(self.parent)).read(self.name).decode(encoding or "utf-8", errors or "strict")


def is_remote(path: object) -> bool:
    """Whether a path is a URL of `SCHEMES`, also one that was made a path and lost a slash."""
    found = _URL.match(str(path))
    return found is not None and found[1].lower() in SCHEMES and not Path(f"{found[1]}:").exists()


def as_url(path: object) -> str:
    """A URL with its two slashes, which `pathlib.Path` makes one."""
    return _LOST_SLASH.sub(r"\1://", str(path))


def checked_url(url: object) -> str:
    """A URL of `SCHEMES` without a slash at the end.

    Raises:
        ValueError: its scheme is another, it names no bucket, it has credentials or a query, or it is read without TLS.
    """
    parts = urlsplit(as_url(url))
    shown = public_url(url)
    if parts.scheme not in SCHEMES:
        raise ValueError(f"{shown} has the scheme {parts.scheme!r}, expected one of {', '.join(SCHEMES)}")
    if not parts.netloc:
        raise ValueError(f"{shown} names no bucket or host, expected {parts.scheme}://<bucket>/<path>")
    if parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(
            f"{shown} has credentials, a query or a fragment, which URLs here cannot have; give the URL without them, "
            "and credentials in the environment"
        )
    if _is_plain_http(parts.scheme) and not _may_skip_tls(as_url(url)):
        raise ValueError(f"{shown} would be read without TLS; use https, or set {ALLOW_HTTP}=1 to allow it")
    return shown.rstrip("/")


def not_by_url(url: object, what: str) -> SourceFormatError:
    """The error of data that are read on this machine only; ``what`` they are, such as "a loom file"."""
    return SourceFormatError(
        f"{url} is {what}, which is not read by URL; download it and give the path of the copy, or convert it on a "
        "machine that has it: `scdataloader convert <path> --out <URL of a store>`"
    )


def public_url(url: object) -> str:
    """A URL without credentials, query and fragment, for messages."""
    parts = urlsplit(as_url(url))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def staging_folder(url: str, prefix: str = "") -> Path:
    """Folder of the cache in which what is written to a bucket is prepared.

    Raises:
        ValueError: it is a web server.
    """
    if url.startswith("http"):
        raise ValueError(f"{url} is a web server, which cannot be written to; give a bucket, such as s3://…")
    name = prefix + blake2b(url.encode(), digest_size=8).hexdigest()
    return RemoteOptions.of_environment().cache / "uploads" / name


def split_url(url: str) -> tuple[str, str]:
    """The folder of an object, and its name: "s3://a/b/c" is "s3://a/b" and "c"."""
    folder, _, name = checked_url(url).rpartition("/")
    if folder.endswith(":/"):
        raise ValueError(f"{public_url(url)} names no object in its bucket; give the path of one")
    return folder, name


def expand_url(url: object) -> list[RemotePath]:
    """The URL, or the sorted URLs that a glob matches: "*" stands for any text without a slash, "**/" for any folders.

    Raises:
        FileNotFoundError: nothing matches.
        ValueError: a glob on a web server, which has no listing.
    """
    address = as_url(url)
    if not _GLOB.search(address):
        return [RemotePath(checked_url(address))]
    folder = address[: _GLOB.search(address).start()].rpartition("/")[0]  # type: ignore[union-attr]
    bucket, pattern = Bucket.open(folder), re.compile(f"({_regex(address[len(folder) + 1 :])})(?:/|$)")
    found = sorted({match[1] for one in bucket.listed() if (match := pattern.match(one.path))})
    if not found:
        raise FileNotFoundError(f"no object matches {address!r}")
    return [RemotePath(bucket.url_of(path)) for path in found]


def _regex(pattern: str) -> str:
    meaning = {"**/": "(?:[^/]+/)*", "*": "[^/]*"}
    return "".join(meaning.get(part) or (part if part[:1] == "[" else re.escape(part)) for part in _GLOB.split(pattern))


def _is_plain_http(scheme: str) -> bool:
    return scheme == "http" or _endpoint(scheme).startswith("http:")


def _endpoint(scheme: str) -> str:
    """URL of the server of a scheme that the environment states; "" for that of the provider."""
    return next((os.environ[name] for name in _ENDPOINTS.get(scheme, ()) if os.environ.get(name)), "")


def _may_skip_tls(url: str) -> bool:
    """Whether the host of a URL, or of its endpoint, is this machine, or the user allows it."""
    if os.environ.get(ALLOW_HTTP) == "1":
        return True
    host = urlsplit(_endpoint(urlsplit(url).scheme) or url).hostname or ""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


_users: set[int] = set()
"""Processes that have used obstore: this one, and its parents before they were forked."""


def note_use() -> None:
    """Remember that this process uses obstore."""
    _users.add(os.getpid())


def is_usable() -> bool:
    """Whether this process can make requests: obstore hangs in a process that was forked after its first use."""
    return not _users - {os.getpid()}


@contextmanager
def explained(url: str) -> Iterator[None]:
    """Translate errors of obstore in a block that concerns ``url``.

    The original message, which may have a signed query, is not chained.

    Raises:
        FileNotFoundError: the object or the bucket does not exist.
        PermissionError: credentials are missing, or do not suffice.
        ConnectionError: the server does not answer, or answers with an error, after all tries.
        SourceChangedError: the object was written since its ETag was read.
        FileExistsError: the object exists, and was to be created.
        ValueError: the bucket is in another region.
        RuntimeError: this process was forked from one that has used object storage.
    """
    base = import_module("obstore.exceptions").BaseError
    if not is_usable():
        raise RuntimeError(
            f"{public_url(url)} cannot be opened here: this process was forked from one that has used object storage; "
            "open it before, or start processes by 'spawn' or 'forkserver'"
        )
    note_use()
    try:
        yield
    except (base, FileNotFoundError, TimeoutError, ConnectionError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # of a local file
        raise _explained(error, public_url(url)) from None


def _explained(error: BaseException, url: str) -> Exception:
    text, kind = str(error), type(error).__name__
    status, code = (_first(pattern, text) for pattern in (r"status code: (\d{3})", r"<Code>(\w+)</Code>"))
    variables = _VARIABLES.get(url.partition(":")[0], "")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    answer = f"{status} {code}".strip()
    remedy = f"check the credentials: {variables}" if variables else "the server must allow reading it"
    why = f"the last answer was {answer}" if answer else "the server did not answer, or broke the connection"
    found: list[tuple[bool, Exception]] = [
        (code in _NO_BUCKET, FileNotFoundError(f"{url} does not exist: there is no such bucket")),
        (isinstance(error, FileNotFoundError), FileNotFoundError(f"{url} does not exist: there is no such object")),
        (
            kind == "PreconditionError",
            SourceChangedError(f"{url} was written after it was opened; open it again in a new run"),
        ),
        (kind == "AlreadyExistsError", FileExistsError(f"{url} exists already")),
        (
            _WRONG_REGION.search(text) is not None,
            ValueError(f"the bucket of {url} is not in the region {region}; set AWS_REGION to that of the bucket"),
        ),
        (
            _NO_CREDENTIALS.search(text) is not None,
            PermissionError(f"no valid credentials for {url} were found; set {variables}"),
        ),
        (
            status in ("401", "403"),
            PermissionError(f"access to {url} was refused ({answer}); {remedy}"),
        ),
    ]
    other = ConnectionError(f"{url} cannot be read or written: {why}; check the network and the address, and run again")
    return next((explanation for applies, explanation in found if applies), other)


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""
