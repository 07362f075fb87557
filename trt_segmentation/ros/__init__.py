# SPDX-License-Identifier: Apache-2.0
"""The ROS 2 node; only this package imports rclpy, and only the command line imports this one."""
