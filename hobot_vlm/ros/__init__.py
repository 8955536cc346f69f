"""The ROS 2 node; the only part of hobot_vlm that imports ROS."""
