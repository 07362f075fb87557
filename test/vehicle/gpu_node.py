# SPDX-License-Identifier: Apache-2.0
"""
On a machine with a GPU and ROS: what the node does with the GPU beside publishing masks.

    export TRT_SEGMENTATION_BACKEND=tensorrt
    python3 -m pytest test/ros/test_ros_node.py test/vehicle/gpu_node.py

Run as a program, it is the node with a fault: a black image spoils the GPU's context, as an
illegal access does.
"""

from pathlib import Path
import signal
import sys
from time import monotonic

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1]))  # for the helpers of the node's tests
from support.ros import BACKEND, built_bundle, direct_segmenter, picture
from support.ros_peer import NodeProcess, peer, pixels_of

CLASS = '/segmentation/class_mask'
SIZE = (64, 128)


@pytest.fixture(scope='module')
def built(tmp_path_factory):
    path = tmp_path_factory.mktemp('built')
    return {'bundle': built_bundle(path / 'bundle', path / 'store', size=SIZE),
            'store': path / 'store', 'backend': BACKEND, 'precision': 'fp32',
            'max_frame_age_ms': 5000}


def gpu_memory_used_mb():
    from trt_segmentation.ros.process import gpu_memory
    return gpu_memory()['gpu_memory_used_mb']


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_the_node_frees_the_gpu(built, tmp_path, number):
    with direct_segmenter(built['bundle']) as direct, peer() as other:
        before = gpu_memory_used_mb()
        with NodeProcess(tmp_path / 'log', **built) as node:
            publisher = other.publisher()
            other.subscribe(CLASS)
            other.wait_for_state('active', node)
            other.wait_for_match(publisher, node, CLASS)
            image = picture(SIZE, 3)
            mask = other.exchange(publisher, image, CLASS, node)
            assert np.array_equal(pixels_of(mask), direct.segment(image).classes)
            status = other.status()
            print({key: status[key] for key in ('backend', 'backend_version', 'precision',
                                                'gpu_memory_used_mb', 'self_test')})
            assert float(status['gpu_memory_used_mb']) > before
            begin = monotonic()
            node.signal(number)
            code = node.wait()
            print(f'ended after {monotonic() - begin:.2f} s with code {code}')
            assert code == (0 if number != signal.SIGKILL else -signal.SIGKILL)
            assert monotonic() - begin < 2
        other.wait(lambda: gpu_memory_used_mb() <= before + 1, 'the memory of the node')


def test_a_lost_gpu_ends_the_process_for_the_launch_file_to_start_it_again(built, tmp_path):
    with peer() as other, NodeProcess(tmp_path / 'log', module=Path(__file__), **built) as node:
        publisher = other.publisher()
        other.subscribe(CLASS)
        other.wait_for_state('active', node)
        other.wait_for_match(publisher, node, CLASS)
        other.exchange(publisher, picture(SIZE, 3), CLASS, node)
        stamp = other.send(publisher, np.zeros((*SIZE, 3), np.uint8))
        other.wait(lambda: not node.running(), 'its end')
        assert node.wait() == 1
        assert 'the GPU is lost to this process' in node.log and 'Traceback' not in node.log
        assert not other.masks_of(CLASS, stamp)


def main():
    """Run the node with the fault."""
    from trt_segmentation.ros import node
    from trt_segmentation.segmenters.gpu import CudaSegmenter
    segment = CudaSegmenter.segment_batch

    def spoiled(self, images, want=('classes', 'color'), **options):
        # The node's warm-up is black too.
        if self.frames > 1 and not any(image.any() for image in images):
            for size in self._sizes.values():
                size._tables[0] = 8  # the kernel reads where nothing is
        self.frames += 1
        return segment(self, images, want, **options)

    CudaSegmenter.frames = 0
    CudaSegmenter.segment_batch = spoiled
    return node.main()


if __name__ == '__main__':
    sys.exit(main())
