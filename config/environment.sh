# shellcheck shell=bash
# What every process that publishes or takes camera images needs in its environment.
#
# In a shell:      . environment.sh
# For a vehicle:   sudo mkdir -p /etc/trt_segmentation && sudo cp fastdds.xml /etc/trt_segmentation/
#                  sudo cp environment.sh /etc/profile.d/trt_segmentation.sh
# Fast DDS 3 (Kilted and later) reads the first variable, Fast DDS 2 (Humble, Jazzy) the second,
# of which Fast DDS 3 warns.
# Check with: trt-segmentation doctor

_trt_segmentation_config=$(cd "$(dirname "${BASH_SOURCE:-$0}")" 2>/dev/null && pwd)
if [ ! -f "$_trt_segmentation_config/fastdds.xml" ]; then
    _trt_segmentation_config=/etc/trt_segmentation
fi
export FASTDDS_DEFAULT_PROFILES_FILE="$_trt_segmentation_config/fastdds.xml"
case "${ROS_DISTRO:-}" in
    humble | iron | jazzy)
        export FASTRTPS_DEFAULT_PROFILES_FILE="$_trt_segmentation_config/fastdds.xml" ;;
    '')  # a shell in which ROS is not sourced yet, or PyPI's wheels: of Kilted rclpy is 9
        # The Python of the PATH, of a clone, of the virtual environment that this file is in.
        for _trt_segmentation_python in python3 "$_trt_segmentation_config/../.venv/bin/python3" \
                "$_trt_segmentation_config/../../../bin/python3"; do
            _trt_segmentation_rclpy=$("$_trt_segmentation_python" -c '
from importlib.metadata import version
print(version("rclpy").split(".")[0])' 2>/dev/null) && break
        done
        [ "${_trt_segmentation_rclpy:-0}" -ge 9 ] ||
            export FASTRTPS_DEFAULT_PROFILES_FILE="$_trt_segmentation_config/fastdds.xml"
        unset _trt_segmentation_python _trt_segmentation_rclpy ;;
esac
unset _trt_segmentation_config
# An image's buffer stays in the process instead of going back to the kernel after each message.
export MALLOC_MMAP_THRESHOLD_=268435456
export MALLOC_TRIM_THRESHOLD_=1073741824
export MALLOC_TOP_PAD_=67108864
