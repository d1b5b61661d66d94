from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class OpenImageRequest(_message.Message):
    __slots__ = ("reference", "manifest", "plain_http")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    PLAIN_HTTP_FIELD_NUMBER: _ClassVar[int]
    reference: str
    manifest: bytes
    plain_http: bool
    def __init__(self, reference: _Optional[str] = ..., manifest: _Optional[bytes] = ..., plain_http: _Optional[bool] = ...) -> None: ...

class OpenImageReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class CacheInventoryRequest(_message.Message):
    __slots__ = ("root",)
    ROOT_FIELD_NUMBER: _ClassVar[int]
    root: str
    def __init__(self, root: _Optional[str] = ...) -> None: ...

class CacheInventoryReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...

class CacheCleanRequest(_message.Message):
    __slots__ = ("root", "selection_json", "dry_run")
    ROOT_FIELD_NUMBER: _ClassVar[int]
    SELECTION_JSON_FIELD_NUMBER: _ClassVar[int]
    DRY_RUN_FIELD_NUMBER: _ClassVar[int]
    root: str
    selection_json: bytes
    dry_run: bool
    def __init__(self, root: _Optional[str] = ..., selection_json: _Optional[bytes] = ..., dry_run: _Optional[bool] = ...) -> None: ...

class CacheCleanReply(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: bytes
    def __init__(self, json: _Optional[bytes] = ...) -> None: ...
