# SPDX-License-Identifier: Apache-2.0
"""Whose file a network is, by what is in it; nothing of it is loaded for that."""

from __future__ import annotations

from pathlib import Path
import zipfile

from trt_segmentation.errors import InputError

_HDF5, _PICKLE = b'\x89HDF\r\n\x1a\n', b'\x80'
# What a file holds instead of a network that is read here, and what to do.
_OTHERS = {
    '.caffemodel': 'it holds the weights of a Caffe network: name its deploy.prototxt, and this '
                   'one with --weights',
    '.prototxt': 'it is a network of Caffe: name its weights with --weights',
    '.tflite': 'networks of TensorFlow Lite are not read: convert the SavedModel or the Keras '
               'file that it was made of',
    '.pdmodel': 'networks of PaddlePaddle are not read: export it with paddle2onnx',
    '.engine': 'it is an engine of TensorRT, which belongs to one GPU: name the network that it '
               'was built from',
    '.ckpt': 'a checkpoint holds weights and no network: export it from its training code',
}
_OTHERS['.plan'] = _OTHERS['.engine']
_NO_PICKLES = ('it is a pickle of PyTorch: to load one runs whatever code is in it, and weights '
               'alone are no network; save it with torch.export.save(torch.export.export(model, '
               "(image,)), 'model.pt2') or torch.jit.trace(model, image).save('model.pt')")


def framework_of(path: Path) -> str:
    """
    Return 'tensorflow', 'pytorch', or '' for what is read as ONNX.

    :param path: a file, or the directory of a SavedModel
    :raises InputError: for other kinds of files that people have, with what to do
    """
    if path.is_dir():
        if (path / 'saved_model.pb').is_file():
            return 'tensorflow'
        raise InputError(f'{path}: it is a directory; expected an ONNX file, or a SavedModel, '
                         'which has a file saved_model.pb')
    try:
        with open(path, 'rb') as file:
            first = file.read(8)
    except OSError:
        return ''  # whoever reads it as ONNX says why it cannot be read
    suffix = path.suffix.lower()
    if first.startswith(b'PK'):
        return _zipped(path)
    if first == _HDF5 or suffix == '.pb':
        return 'tensorflow'
    if suffix in ('.pt', '.pth') and first.startswith(_PICKLE):
        raise InputError(f'{path}: {_NO_PICKLES}')
    if suffix in _OTHERS:
        raise InputError(f'{path}: {_OTHERS[suffix]}')
    return ''


def _zipped(path: Path) -> str:
    """Return whose file a ZIP archive is."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise InputError(f'{path}: it begins as a ZIP archive, as files of PyTorch and Keras do, '
                         'but is damaged or cut off') from None
    inner = {name.partition('/')[2] for name in names}
    if {'config.json', 'metadata.json'} <= set(names):
        return 'tensorflow'
    if 'serialized_exported_program.json' in names or 'archive_format' in inner:
        return 'pytorch'
    if 'constants.pkl' in inner:
        return 'pytorch'
    if 'data.pkl' in inner:
        raise InputError(f'{path}: {_NO_PICKLES}')
    raise InputError(f'{path}: it is a ZIP archive, but none of PyTorch or Keras; expected a '
                     'network')
