"""The systems of the language's examples, whole, as far as names and shapes of the document go."""

OPS = frozenset({
    "rms_norm", "rope", "gelu_tanh", "gelu", "relu", "tanh", "embed", "unembed", "sqrt", "cycle", "softcap",
    "linear", "attend", "normal", "uniform", "zeros", "text", "images", "replay", "cross_entropy", "next",
    "mse", "adamw", "adam", "sgd", "warmup_cosine", "conv1d", "rg_lru", "chunked_cross_attention", "chunks",
    "sine", "siren", "sample_grid", "local_coordinates", "learned", "conv2d", "batch_norm", "max_pool",
    "mean", "sum", "softmax", "square", "clip", "grad", "stop", "project", "copy", "arrays",
})  # fmt: skip

GRIFFIN = """\
planform: 1
model: griffin
paper: arXiv:2402.19427
dims: {vocab: 256, d: 64, lru: 64, blocks: 4, heads: 4, head_dim: 16, window: 32, ff: 128, layers: 26}
params:
  table: {shape: [vocab, d], init: normal(0.02)}
blocks:
  norm: rms_norm(offset=1)
  gate: linear(lru, bias=true) >> gelu_tanh
  recurrence: linear(lru, bias=true) >> conv1d(4, causal=true, bias=true) >> rg_lru(blocks)
  recur: norm >> gate * recurrence >> linear(d, bias=true)
  attend: |
    norm >> attention(heads, 1, head_dim, causal=true, window=window + 1, scale=head_dim ^ -0.5,
                      position=rope(10000, fraction=0.5), out_bias=true)
  feed: norm >> glu(ff, gelu_tanh, bias=true)
  layer(mix): id + mix >> id + feed
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
    body: |
      logits = tokens >> embed(table) * sqrt(d)
               >> cycle([layer(recur), layer(recur), layer(attend)], layers)
               >> norm >> unembed(table) >> softcap(30)
"""

RETRO = """\
planform: 1
model: retro
paper: arXiv:2112.04426
dims: {vocab: 256, d: 64, heads: 4, head_dim: 16, ff: 128, chunk: 64, neighbours: 2, passage: 128, encoder_layers: 2}
params:
  table: {shape: [vocab, d], init: normal(0.02)}
  encoder_table: {shape: [vocab, d], init: normal(0.02)}
blocks:
  attend: rms_norm >> attention(heads, heads, head_dim, causal=true, scale=head_dim ^ -0.5, position=rope(10000))
  encode: rms_norm >> attention(heads, heads, head_dim, scale=head_dim ^ -0.5, position=rope(10000))
  cross(h): rms_norm >> chunked_cross_attention(h, heads, head_dim, chunk=chunk)
  feed: rms_norm >> glu(ff, gelu)
  layer: id + attend >> id + feed
  cca(e): rms_norm >> chunked_cross_attention(e, heads, head_dim, chunk=chunk)
  tail(e): id + cca(e) >> id + feed
  encoder(h): |                                   # conditioned on the decoder in its first layer only
    id + encode >> id + cross(h) >> id + feed >> (id + encode >> id + feed) ^ (encoder_layers - 1)
graphs:
  lm:
    inputs:
      tokens: int[batch, time]
      retrieved: int[batch, time // chunk, neighbours, passage]
      found: bool[batch, time // chunk, neighbours]
    stream: time
    body: |                                       # 12 layers, retrieval in 6, 9, 12
      h = tokens >> embed(table) >> layer ^ 5 >> id + attend
      e = retrieved >> embed(encoder_table) >> encoder(h >> chunks(chunk))
      logits = h >> tail(e) >> (layer ^ 2 >> id + attend >> tail(e)) ^ 2 >> rms_norm >> unembed(table)
"""

FUNCTA = """\
planform: 1
model: functa
paper: arXiv:2302.03130
dims: {width: 32, depth: 6, w0: 10.0}
blocks:
  sine_layer(z): linear(width, bias=true, init=siren(w0)) + (z >> linear(width, bias=true)) >> sine(w0)
graphs:
  field:
    inputs:
      coords: float[batch, points, axes]
      latent: float[batch, rows, columns, features]
    body: |
      z = latent >> sample_grid(coords, mode="nearest")
      x = coords >> local_coordinates(rows, columns)
      rgb = x >> sine_layer(z) >> sine_layer(z) ^ (depth - 2) >> linear(3, bias=true) + 0.5
train:
  data: images(coords, target)
  inner:
    variable: latent
    start: zeros
    steps: 3
    rates: learned(latent)
    loss: mse(field(coords, latent).rgb, target)
  loss: mse(field(coords, latent).rgb, target)
  optimizer: adam(3e-6)
"""

GAN = """\
planform: 1
model: gan
paper: arXiv:1802.05957
dims: {noise: 16, classes: 10}
blocks:
  make(l): linear(64, bias=true) * (l >> embed_label) >> relu >> linear(64)
  embed_label: linear(64)
graphs:
  generator:
    inputs:
      latent: float[batch, noise]
      label: int[batch]
    body: |
      image = latent >> make(label)
  discriminator:
    inputs:
      image: float[batch, pixels]
      label: int[batch]
    body: |
      h = image >> linear(64) >> relu
      score = h >> linear(1)
    outputs: [score, h]
train:
  data: images(image, label)
  updates:
    generator:
      params: generator
      sample:
        z: normal[2 * batch, noise]
        fake: category[2 * batch, classes]
      loss: -mean(discriminator(generator(z, fake).image, fake).score)
      optimizer: adam(2e-4, b1=0, b2=0.9)
    discriminator:
      params: discriminator
      repeat: 5
      sample:
        z: normal[batch, noise]
        fake: category[batch, classes]
      loss: |
        mean(relu(1 - discriminator(image, label).score))
        + mean(relu(1 + discriminator(generator(z, fake).image, fake).score))
      optimizer: adam(2e-4, b1=0, b2=0.9)
"""

D4PG = """\
planform: 1
model: d4pg
paper: arXiv:1804.08617
dims: {actions: 4, atoms: 51}
params:
  support: {shape: [atoms]}
graphs:
  actor:
    inputs:
      observation: float[batch, features]
    body: |
      action = observation >> linear(actions) >> tanh
  critic:
    inputs:
      observation: float[batch, features]
      choice: float[batch, actions]
    body: |
      logits = (observation >> linear(64)) + (choice >> linear(64)) >> relu >> linear(atoms)
train:
  data: replay(actor)
  targets:
    slow_actor: copy(actor, every=100)
    slow_critic: copy(critic, every=100)
  simultaneous: true
  updates:
    critic:
      params: critic
      loss: |
        future = slow_critic(next_observation, slow_actor(next_observation).action).logits
        target = project(softmax(future), support, reward + discount * support)
        mean(cross_entropy(critic(observation, choice).logits, stop(target)))
      optimizer: adam(1e-4, clip=40)
    actor:
      params: actor
      loss: |
        a = actor(next_observation).action
        q = sum(softmax(critic(next_observation, a).logits) * support)
        g = clip(grad(q, a), -1, 1)
        mean(0.5 * square(stop(g + a) - a))
      optimizer: adam(1e-4, clip=40)
"""

SYSTEMS = {"griffin": GRIFFIN, "retro": RETRO, "functa": FUNCTA, "gan": GAN, "d4pg": D4PG}
FIELDS = {"d4pg": ("next_observation", "reward", "discount")}
"""What a system's data source supplies beyond the names in its call."""
