# SPDX-License-Identifier: Apache-2.0
"""Networks of TensorFlow give as bundles what they give in TensorFlow (`make test-tensorflow`)."""

import os

os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'

import keras
import numpy as np
import onnx
import pytest
from support.networks import infer
import tensorflow as tf

from trt_segmentation.bundles.bundle import Bundle
from trt_segmentation.bundles.create import create
from trt_segmentation.bundles.labels import Label, LabelSet
from trt_segmentation.cli import main
from trt_segmentation.errors import InputError
from trt_segmentation.networks.quantize import quantize

CLASSES, SIZE = 5, (32, 48)
LABELS = LabelSet(tuple(Label(f'l{i}', i, (i, i, i), 'c') for i in range(CLASSES)))
PIXELS = np.random.default_rng(1).integers(0, 256, (1, *SIZE, 3))


def deeplab(size=SIZE, dropout=True):
    """Return a small network with the parts of DeepLabV3+ in Keras, its weights random."""
    layers = keras.layers
    data = layers.Input((*size, 3), name='image')
    x = layers.Conv2D(8, 3, 2, padding='same', use_bias=False)(data)
    low = x = layers.ReLU(6.)(layers.BatchNormalization()(x))
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding='valid')(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    branches = [layers.Conv2D(8, 3, dilation_rate=rate, padding='same', activation='relu')(x)
                for rate in (1, 2, 6)]
    branches.append(layers.SeparableConv2D(8, 3, dilation_rate=3, padding='same')(x))
    x = layers.Conv2D(8, 1, activation='relu')(layers.Concatenate()(branches))
    x = layers.Dropout(.5)(x) if dropout else x
    x = layers.Concatenate()([layers.UpSampling2D(2, interpolation='bilinear')(x), low])
    x = layers.Conv2DTranspose(CLASSES, 4, 2, padding='same')(x)
    model = keras.Model(data, layers.Softmax()(x))
    random = np.random.default_rng(0)
    for weight in model.weights:
        if 'variance' in weight.path:
            weight.assign(random.uniform(.5, 2, weight.shape))
        elif weight.dtype.startswith('float'):
            weight.assign(random.normal(0, .3, weight.shape))
    return model


def check(path, tmp_path, expected, probabilities=True, **options):
    """Compare the bundle's network with probabilities or logits (N, H, W, C) of PIXELS."""
    options.setdefault('mean', (0, 0, 0))
    options.setdefault('scale', (1 / 255,) * 3)
    if options['mean'] is None:
        del options['mean'], options['scale']
    created = create(path, tmp_path / 'bundle', labels=LABELS, **options)
    bundle = Bundle.open(tmp_path / 'bundle')
    scale = np.float32(options.get('scale', (1,))[0])
    logits = infer(bundle.model_path, PIXELS.astype(np.float32).transpose(0, 3, 1, 2) * scale)
    assert logits.shape == (1, CLASSES, *expected.shape[1:3])
    found = logits.transpose(0, 2, 3, 1)
    if probabilities:
        found = np.exp(found - found.max(-1, keepdims=True))
        found /= found.sum(-1, keepdims=True)
    assert np.abs(found - expected).max() < 1e-4 * max(np.abs(expected).max(), 1)
    model = onnx.load(bundle.model_path)
    found = {node.op_type for node in model.graph.node}
    assert not {'SpaceToDepth', 'DepthToSpace', 'Pad'} & found
    return created, model


@pytest.mark.parametrize('form', ['net.keras', 'net.h5', 'saved'])
def test_keras_s_files_and_saved_models(tmp_path, form):
    model = deeplab()
    model.export(tmp_path / form) if form == 'saved' else model.save(tmp_path / form)
    expected = np.asarray(model(PIXELS.astype(np.float32) / np.float32(255), training=False))
    created, network = check(tmp_path / form, tmp_path, expected)
    assert created.spec.input.tensor == 'image'
    assert 'tf2onnx' in created.changes[0] and 'of what TensorFlow gives' in created.changes[0]
    dilations = {tuple(entry.ints) for node in network.graph.node for entry in node.attribute
                 if entry.name == 'dilations'}
    assert {(2, 2), (3, 3), (6, 6)} <= dilations
    scales = {name: 1. for node in network.graph.node for name in node.output} | {'image': 1.}
    layers = quantize(network, scales, 'tensorrt', input_shapes={'image': (1, 3, *SIZE)}).layers
    assert {layer.op for layer in layers if layer.reason} == {'ConvTranspose'}
    assert sum(layer.op == 'Conv' for layer in layers) == 8


def frozen(tmp_path, function, dtype='float32', shape=(1, *SIZE, 3), name='image'):
    """Write a frozen graph of a function of one image; return its path and what it gives."""
    with tf.Graph().as_default() as graph:
        image = tf.compat.v1.placeholder(dtype, shape, name)
        outputs = function(image)
        with tf.compat.v1.Session() as session:
            values = session.run(outputs, {image: given(dtype)})
    path = tmp_path / 'frozen.pb'
    path.write_bytes(graph.as_graph_def().SerializeToString())
    return path, values


def given(dtype):
    return PIXELS.astype(dtype) if dtype == 'uint8' else PIXELS.astype(dtype) / np.float32(255)


def weights(*shape, seed=2):
    return tf.constant(np.random.default_rng(seed).normal(0, .3, shape).astype(np.float32))


def in_blocks(x, rate, inside):
    """Return what TensorFlow 1 made of a dilated convolution: in blocks, with what is `inside`."""
    surplus = [-side % rate for side in x.shape[1:3]]
    x = tf.space_to_batch(x, [rate, rate], [[rate, rate + more] for more in surplus])
    return tf.batch_to_space(inside(x), [rate, rate], [[0, more] for more in surplus])


def normalized(x):
    scale, offset, mean = (tf.identity(weights(8, seed=seed), 'read') for seed in (3, 4, 5))
    x, *_ = tf.compat.v1.nn.fused_batch_norm(
        x, scale, offset, mean=mean, variance=tf.constant(np.float32([.5] * 8)),
        is_training=False)
    return tf.nn.relu6(x)


INSIDE = {
    'alone': lambda x: tf.nn.conv2d(x, weights(3, 3, 8, 8), 1, 'VALID'),
    'with bias and activation': lambda x: tf.nn.relu(tf.nn.bias_add(
        tf.nn.conv2d(x, weights(3, 3, 8, 8), 1, 'VALID'), weights(8))),
    'normalized': lambda x: normalized(tf.nn.conv2d(x, weights(3, 3, 8, 8), 1, 'VALID')),
    'depthwise, folded': lambda x: tf.nn.depthwise_conv2d(
        x, weights(3, 3, 8, 1), [1, 1, 1, 1], 'VALID') * weights(8) + weights(8, seed=5),
}


@pytest.mark.parametrize('inside', INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize('rate', [2, 5])
def test_frozen_graphs_with_convolutions_in_blocks(tmp_path, inside, rate):
    def network(image):
        x = tf.pad(image, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 3, 8), 2, 'VALID'))
        x = in_blocks(x, rate, inside)
        x = tf.nn.conv2d(x, weights(1, 1, 8, CLASSES), 1, 'SAME')
        return tf.compat.v1.image.resize_bilinear(x, SIZE, align_corners=True, name='scores')

    path, expected = frozen(tmp_path, network)
    created, model = check(path, tmp_path, expected, probabilities=False)
    assert created.spec.input.tensor == 'image'
    dilations = [tuple(entry.ints) for node in model.graph.node for entry in node.attribute
                 if entry.name == 'dilations']
    assert dilations.count((rate, rate)) == 1


def test_a_frozen_graph_that_takes_pixels_and_gives_class_ids(tmp_path):
    """As DeepLab's published graphs do: a free size, normalization and choice inside."""
    def network(image):
        x = tf.cast(image, tf.float32) * (2 / 255) - 1.
        x = tf.nn.relu(tf.nn.conv2d(x, weights(3, 3, 3, 8), 2, 'SAME'))
        x = tf.nn.conv2d(x, weights(1, 1, 8, CLASSES), 1, 'SAME', name='logits')
        x = tf.compat.v1.image.resize_bilinear(x, tf.shape(image)[1:3], align_corners=True,
                                               name='scores')
        return {'ids': tf.argmax(x, 3, name='SemanticPredictions'), 'scores': x}

    path, values = frozen(tmp_path, network, 'uint8', (1, None, None, 3), 'ImageTensor')
    with pytest.raises(InputError, match="'ImageTensor' has no fixed size .* --size"):
        create(path, tmp_path / 'bundle', labels=LABELS)
    created, _ = check(path, tmp_path, values['scores'], False, size=SIZE, mean=None)
    assert created.spec.output.kind == 'logits'  # of which the ids are the largest
    assert (values['scores'].argmax(-1) == values['ids']).all()
    # Cut inside, as those are told who want less than the file has.
    created = create(path, tmp_path / 'cut', labels=LABELS, size=SIZE, output_tensor='logits:0')
    cut = onnx.load(tmp_path / 'cut/frozen.onnx')
    assert 'Resize' not in {node.op_type for node in cut.graph.node}
    with pytest.raises(InputError, match="it has no tensor 'nothing'"):
        create(path, tmp_path / 'none', labels=LABELS, size=SIZE, output_tensor='nothing')


def test_free_sizes_and_wrong_ones(tmp_path):
    deeplab((None, None)).save(tmp_path / 'free.keras')
    with pytest.raises(InputError, match="input 'image' has no fixed size .* --size"):
        create(tmp_path / 'free.keras', tmp_path / 'bundle', labels=LABELS)
    created = create(tmp_path / 'free.keras', tmp_path / 'bundle', labels=LABELS, size=(16, 32))
    assert created.spec.input.size == (16, 32)
    deeplab().save(tmp_path / 'fixed.keras')
    with pytest.raises(InputError, match=r'is 32x48 \(height x width\) in the file, and --size 8'):
        create(tmp_path / 'fixed.keras', tmp_path / 'other', labels=LABELS, size=(8, 16))


def test_what_tensorflow_refuses_is_one_line(tmp_path, capsys):
    layers = keras.layers
    data = layers.Input((*SIZE, 3))
    keras.Model(data, layers.Lambda(lambda x: x * 2)(data)).save(tmp_path / 'code.keras')
    deeplab().save_weights(tmp_path / 'only.weights.h5')
    (tmp_path / 'broken.pb').write_bytes(b'\x0a\xff' * 40)
    (tmp_path / 'cut.h5').write_bytes((tmp_path / 'only.weights.h5').read_bytes()[:900])
    two = keras.Model([data, other := layers.Input((*SIZE, 3))], layers.Add()([data, other]))
    two.save(tmp_path / 'two.keras')
    with tf.Graph().as_default() as graph:
        tf.compat.v1.get_variable('w', (3, 3, 3, 8), use_resource=False)
    (tmp_path / 'variables.pb').write_bytes(graph.as_graph_def().SerializeToString())
    for name, said in {'code.keras': 'ambda', 'only.weights.h5': 'onfig', 'cut.h5': 'TensorFlow',
                       'broken.pb': 'no graph of TensorFlow', 'two.keras': '2 inputs',
                       'variables.pb': 'freeze it'}.items():
        assert main(['init', str(tmp_path / name), str(tmp_path / 'bundle')]) == 2, name
        line, = capsys.readouterr().err.splitlines()
        assert said in line and name in line, line
        assert not (tmp_path / 'bundle').exists()
