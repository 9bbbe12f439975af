"""The README.txt that goes with an artefact, one for each form. Its code runs as it stands; a test runs it."""

from __future__ import annotations

STEP_README = """\
A language model in step form: one file takes a prompt and then one token after the other.

  model.onnx, model.onnx.data   the model and its weights
  contract.json                 names, shapes, dtypes, states, hashes of the files
  fixture.npz                   inputs and the outputs expected for them (if there is one)

How to run it
-------------
Every call takes the next chunk of each stream in the batch. `count` says how many entries of each row are
valid (rows are padded at their end; a stream's first chunk has at least one). Entries of an input with
`below` are at least 0 and below that number. Every state named under
`states` in the contract goes in under `input` and comes out under `output`; it starts as zeros. In its shape
`batch` is the number of streams and `capacity` the room for a stream, padding included, at most
`max_positions`. A state with `in_place` may share its memory with its successor (bind the same buffer as
input and output); the others must not.

With Python, onnxruntime and NumPy, from this folder:

    import json, numpy as np, onnxruntime as ort

    contract = json.load(open("contract.json"))
    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    about, arrays = contract["fixture"], np.load("fixture.npz")
    sizes = {"batch": about["batch"], "capacity": about["capacity"]}
    states = {s["input"]: np.zeros([sizes.get(d, d) for d in s["shape"]], s["dtype"]) for s in contract["states"]}
    names = [o["name"] for o in contract["outputs"]]
    for i in range(about["chunks"]):
        chunk = {k[len(f"{i}/in/"):]: arrays[k] for k in arrays.files if k.startswith(f"{i}/in/")}
        first = next(iter(chunk.values()))
        chunk.setdefault("count", np.full(len(first), first.shape[1], np.int32))
        results = session.run(names + [s["output"] for s in contract["states"]], {**chunk, **states})
        states = dict(zip(states, results[len(names):]))
        for name, got in zip(names, results):
            want = arrays[f"{i}/out/{name}"]
            rows = [slice(None) if got.shape[1] == 1 else slice(c) for c in chunk["count"]]
            worst = max(np.abs(g[s] - w[s]).max() for g, w, s in zip(got, want, rows))
            print(name, "chunk", i, "relative error", worst / np.abs(want).max())
"""

SEQUENCE_README = """\
A model that takes a whole sequence at once.

  model.onnx, model.onnx.data   the model and its weights
  contract.json                 names, shapes, dtypes, hashes of the files
  fixture.npz                   inputs and the outputs expected for them (if there is one)

`position` counts the entries of a document from 0, `document` numbers the documents in a row; a model that
needs neither has no such input.

With Python, onnxruntime and NumPy, from this folder:

    import numpy as np, onnxruntime as ort

    session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    arrays = np.load("fixture.npz")
    names = [o.name for o in session.get_outputs()]
    inputs = {i.name: arrays[f"0/in/{i.name}"] for i in session.get_inputs()}
    for name, got in zip(names, session.run(names, inputs)):
        want = arrays[f"0/out/{name}"]
        print(name, "relative error", np.abs(got - want).max() / np.abs(want).max())
"""
