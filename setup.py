# SPDX-License-Identifier: Apache-2.0
"""Package description for colcon (ament_python) and pip alike."""

from glob import glob

from setuptools import find_packages, setup
from setuptools.command.develop import develop

package_name = 'trt_segmentation'


class Develop(develop):
    """What `colcon build --symlink-install` runs."""

    def write_script(self, script_name, contents, *args, **options):
        """Write a script for the interpreter that setup.cfg names, as without symlinks."""
        executable = self.get_finalized_command('build_scripts').executable
        body = contents.partition('\n')[2]
        super().write_script(script_name, f'#!{executable}\n{body}', *args, **options)


# Below 5: cv_bridge knows no type numbers of OpenCV 5 and raises KeyError on every color image.
opencv = 'opencv-python-headless<5'
# What calibrate, build, evaluate and replay need beside the running node's core. ONNX Runtime
# before 1.23 leaves most convolutions with a float bias in float, some releases excepted.
tools = ['onnx>=1.16', 'onnxruntime>=1.23', 'matplotlib', 'pillow>=9.1', 'jinja2', 'tqdm',
         'rosbags>=0.10.9', 'mcap>=1.1', 'apsw']

setup(
    name=package_name,
    cmdclass={'develop': Develop},
    version='0.2.0',
    # An editable installation then is a directory on the path; else the folder of a clone would
    # hide the package, as a namespace, from a Python that starts beside it.
    package_dir={'': '.'},
    packages=find_packages(include=[package_name, f'{package_name}.*']),
    package_data={package_name: [
        'sample/bundle/*', 'sample/bundle/golden/*', 'cuda/*.cu', 'cuda/*.ptx', 'cuda/jpeg/*.jpg',
        'reports/*.html', 'py.typed',
    ]},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package_name}']),
        (f'share/{package_name}', ['package.xml']),
        # colcon.pkg names it: sourcing the workspace puts the commands on the PATH.
        (f'share/{package_name}/hook', ['resource/commands.dsv']),
        (f'share/{package_name}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{package_name}/config', sorted(glob('config/*'))),
    ],
    python_requires='>=3.10',
    # simplejpeg reports what libjpeg warns of, which OpenCV keeps to itself.
    install_requires=['setuptools', 'numpy', opencv, 'PyYAML', 'simplejpeg>=1.8'],
    extras_require={
        # On a machine without a ROS distribution; where one is sourced, its own rclpy is used.
        'ros': [
            'ros-rclpy[fastrtps]', 'ros-sensor-msgs', 'ros-std-msgs', 'ros-diagnostic-msgs',
            'ros-lifecycle-msgs', 'ros-rosgraph-msgs', 'ros-std-srvs',
        ],
        'cpu': tools,
        'rtx': [*tools, 'tensorrt-rtx-cu13-bindings>=1.7', 'tensorrt-rtx-cu13-libs>=1.7'],
        'gpu': ['pycuda', 'tensorrt'],
        'dask': ['distributed'],
        # Recordings by URL: https; s3fs, gcsfs, paramiko .. are the other kinds.
        'remote': ['fsspec[http]'],
        # What `init` needs beside `cpu` for networks of these. tf2onnx below 1.17 wants
        # protobuf 3, which ONNX does not; 2.21 was tried. It converts without CUDA as well.
        'tensorflow': ['tf2onnx>=1.17', 'tensorflow-cpu>=2.21'],
        'pytorch': ['torch>=2.6', 'onnxscript>=0.5'],
        'train': ['torch', 'onnx>=1.16'],
        # With Chromium: reports and README as a browser shows them. 45 MB, so not part of `test`.
        'browser': ['playwright', 'markdown-it-py'],
        # `colcon test` runs pytest because this extra names it.
        'test': ['pytest>=8.2', 'pytest-timeout', 'hypothesis', 'cityscapesscripts'],
    },
    zip_safe=False,
    maintainer='trt_segmentation maintainers',
    maintainer_email='maintainers@trt-segmentation.invalid',
    description='INT8 semantic segmentation with TensorRT: calibrate, build, prove, run on time.',
    license='Apache-2.0',
    entry_points={
        'console_scripts': [
            f'segmentation_node = {package_name}.start:node',
            f'trt-segmentation = {package_name}.start:command',
        ],
    },
)
