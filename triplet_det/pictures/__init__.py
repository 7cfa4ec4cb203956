"""Pictures: boxes and heatmaps drawn on images, curves plotted, videos read and written."""
