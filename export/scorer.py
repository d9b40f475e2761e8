"""A scorer beside its decoder: the weights that both hold are stored once, in decoder.onnx."""

import onnx

from service.manifest import DECODER

# Shapes and scalars stay inside: graph optimisers look at them, and a reference would be as long as they are.
_SMALLEST_BYTES = 1024


def without_copies(scorer: bytes, *, decoder: bytes) -> bytes:
    """The scorer, with references in place of the weights that the decoder holds too, to the byte.

    It stays plain ONNX: external data of the location `decoder.onnx`, with offset and length in that very file, which
    any reader of ONNX finds where both files lie in one folder.
    """
    proto = onnx.load_model_from_string(scorer)
    for tensor in proto.graph.initializer:
        length = len(tensor.raw_data)
        offset = decoder.find(tensor.raw_data) if length >= _SMALLEST_BYTES else -1
        if offset >= 0:
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", DECODER), ("offset", offset), ("length", length)):
                tensor.external_data.add(key=key, value=str(value))
    content: bytes = proto.SerializeToString(deterministic=True)
    return content
