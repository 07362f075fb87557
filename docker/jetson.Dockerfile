# A Jetson with JetPack 6: ROS 2 Humble from Ubuntu's packages, TensorRT and CUDA of the board. From
# a clone, on the Jetson; USER_ID is the user of the camera's driver, as images go through shared memory
# between processes of one user only (0 for a driver that runs as root in its container):
#   docker build -f docker/jetson.Dockerfile --build-arg USER_ID="$(id -u)" -t trt_segmentation:jetson .
#   docker run --rm --runtime nvidia --network host --ipc host -v /opt/bundle:/bundle \
#     -v trt_segmentation:/store trt_segmentation:jetson
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0

ARG ROS_DISTRO=humble
ENV ROS_DISTRO=${ROS_DISTRO} DEBIAN_FRONTEND=noninteractive
SHELL ["/bin/bash", "-o", "pipefail", "-c"]

# hadolint ignore=DL3008  # the distribution's releases are what is wanted
RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates curl \
 && curl -fsSL https://raw.githubusercontent.com/ros/rosdistro/master/ros.key \
      -o /usr/share/keyrings/ros-archive-keyring.gpg \
 && echo "deb [signed-by=/usr/share/keyrings/ros-archive-keyring.gpg] http://packages.ros.org/ros2/ubuntu $(. /etc/os-release && echo "$UBUNTU_CODENAME") main" \
      >/etc/apt/sources.list.d/ros2.list \
 && apt-get update \
 && apt-get install -y --no-install-recommends build-essential python3-colcon-common-extensions \
      python3-dev python3-rosdep python3-venv "ros-${ROS_DISTRO}-ros-base" \
 && rm -rf /var/lib/apt/lists/* \
 && rosdep init

COPY . /ws/src/trt_segmentation
WORKDIR /ws
# hadolint ignore=SC1091
RUN apt-get update \
 && rosdep update --rosdistro "$ROS_DISTRO" \
 && rosdep install --from-paths src --ignore-src -y \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv --system-site-packages venv && touch venv/COLCON_IGNORE \
 && source venv/bin/activate \
 && PATH="/usr/local/cuda/bin:$PATH" pip install --no-cache-dir \
      -c src/trt_segmentation/constraints/ros.txt \
      onnx 'onnxruntime>=1.23' rosbags mcap simplejpeg pycuda \
 && source "/opt/ros/$ROS_DISTRO/setup.bash" \
 && colcon build --packages-select trt_segmentation

# The engine is built on the board, where the volume keeps it.
ARG USER_ID=1001
RUN (getent passwd "$USER_ID" || useradd --create-home --uid "$USER_ID" vehicle) \
 && install -d -o "$USER_ID" -m 700 /store
USER ${USER_ID}
ENV TRT_SEGMENTATION_STORE=/store
COPY docker/ros_entrypoint.sh /
ENTRYPOINT ["/ros_entrypoint.sh"]
CMD ["ros2", "launch", "trt_segmentation", "segmentation.launch.py", "bundle:=/bundle"]
