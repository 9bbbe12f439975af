"""The main job: a spec becomes a replicated training run and a verified ONNX artefact."""
