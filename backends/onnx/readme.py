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
`max_positions`; where that is null no state grows, and a stream goes on without end. A state with `in_place`
may share its memory with its successor (bind the same buffer as input and output); the others must not.

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

GENAI_README = """\
A language model in step form, for onnxruntime-genai 0.18 or newer, or for plain onnxruntime.

  model.onnx, model.onnx.data   the model and its weights
  genai_config.json             what onnxruntime-genai must know of it
  contract.json                 names, shapes, dtypes, states, hashes of the files
  fixture.npz                   inputs and the outputs expected for them (if there is one), see `origin` in the contract

How to run it
-------------
With Python, onnxruntime-genai and NumPy, from this folder:

    import numpy as np, onnxruntime_genai as og

    model = og.Model(".")
    generator = og.Generator(model, og.GeneratorParams(model))
    generator.append_tokens(np.array([1, 2, 3], np.int32))
    for _ in range(5):
        if not generator.is_done():
            generator.generate_next_token()
    print(generator.get_sequence(0).tolist())

The search option `max_length` is the room for a stream, prompt included: at most `context_length` and, where the
configuration has a `sliding_window`, at least `window_size` + `cache_slack`. A text ends with an id of
`eos_token_id`; where there is none, the generator takes 0 for it. Logits are those of the last entry only.

Plain onnxruntime gets `attention_mask` [batch, past + time] besides: one for each entry of the stream so far and of the
chunk, zero for padding, which stands at the end of a row. The states are listed in the contract; those with `in_place`
may share their memory with their successors.
"""

QUANTISED_README = """\

This model is quantised
-----------------------
What the fixture expects are the outputs of the unquantised model, so the code above prints larger errors than rounding
alone would give. `quantization` in the contract says what is stored how and what that was measured to cost;
`limits` under `fixture` how far all outputs of the fixture together may be off, and by which measure.
"""
