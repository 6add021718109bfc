"""Detections to AP tables by COCO and LVIS rules."""
