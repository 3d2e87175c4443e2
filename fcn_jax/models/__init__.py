"""The networks: VGG16 encoder, score layers with skips, upsampling. No data, no training."""
