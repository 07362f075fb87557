#!/usr/bin/env bash
# Sources what docs/install.md says, and runs a command with it.
set -e
# shellcheck disable=SC1090,SC1091  # they are in the image
{
  source /ws/venv/bin/activate
  source "/opt/ros/$ROS_DISTRO/setup.bash"
  source /ws/install/setup.bash
}
exec "$@"
