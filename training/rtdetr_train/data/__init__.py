"""Images with boxes: COCO's json, drawn smears, augmentation, batches."""
