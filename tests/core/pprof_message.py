"""profile.proto's messages for the ``protobuf`` package, read from the file itself.

An independent reader of what the core writes: another implementation of protobuf, and
the proto file parsed here, so that nothing generated is committed.
"""

import gzip
import re
from functools import cache
from typing import Any

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)

from .library import ROOT

Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "int64": Field.TYPE_INT64,
    "uint64": Field.TYPE_UINT64,
    "bool": Field.TYPE_BOOL,
    "string": Field.TYPE_STRING,
}


@cache
def profile_class() -> Any:
    text = re.sub(r"//.*", "", (ROOT / "proto" / "profile.proto").read_text())
    file = descriptor_pb2.FileDescriptorProto(
        name="spanprof/profile.proto", package="spanprof.pprof", syntax="proto3"
    )
    for name, body in re.findall(r"message (\w+) \{(.*?)\}", text, re.DOTALL):
        message = file.message_type.add(name=name)
        for repeated, kind, field, number in re.findall(
            r"(repeated )?(\w+) (\w+) = (\d+);", body
        ):
            added = message.field.add(name=field, number=int(number))
            added.label = Field.LABEL_REPEATED if repeated else Field.LABEL_OPTIONAL
            if kind in SCALARS:
                added.type = SCALARS[kind]
            else:
                added.type = Field.TYPE_MESSAGE
                added.type_name = f".spanprof.pprof.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("spanprof.pprof.Profile")
    return message_factory.GetMessageClass(descriptor)


def parse(data: bytes) -> Any:
    message = profile_class()()
    message.ParseFromString(gzip.decompress(data))
    return message


def serialize(message: Any) -> bytes:
    return gzip.compress(message.SerializeToString())
