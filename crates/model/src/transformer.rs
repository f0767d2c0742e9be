//! The one forward pass: it trains with a recording tape and generates with a cache.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use ground::seeds::{FNV, fnv};
use tensor::ops::{self, AttentionShape, KvLayer, Pairs, RopeTable, Segment};
use tensor::params::{Param, Values};
use tensor::{Buf, Params, Rng, Tape, Tensor, Weight, threads};

use crate::adapter::{AdapterConfig, base_of};
use crate::batch::BatchInfo;
use crate::config::{Activation, ModelConfig, RopeTablesSpec, TensorKind, TensorSpec, tensor_specs};
use crate::device::{Place, place_of};
use crate::files::{self, FileError, GenerationConfig, WeightType};
use crate::gqa::{Gqa, Ropes};
use crate::kv_cache::KvCache;
use crate::linear::Parts;
use crate::mla::Mla;
use crate::moe::{ExpertLoad, FeedForward};

/// Positions for which a model holds rotary tables from the start; [`Model::reserve_positions`] extends them.
const FIRST_POSITIONS: usize = 4096;

/// A model: its configuration, its parameters, and where in the arena each layer finds its own.
pub struct Model {
    config: ModelConfig,
    /// What each parameter is, in their order.
    specs: Vec<TensorSpec>,
    adapter: Option<AdapterConfig>,
    /// Where it was read from.
    source: PathBuf,
    generation: GenerationConfig,
    notices: Vec<String>,
    params: Params,
    /// Bytes of the weights as the processor holds them.
    stored_bytes: usize,
    embed: Weight,
    blocks: Vec<Block>,
    norm: Weight,
    head: Weight,
    mtp: Option<Mtp>,
    ropes: Ropes,
    shape: AttentionShape,
    eps: f32,
    /// Factor of the embedding, where it has one.
    embedding_scale: Option<f32>,
}

enum Attention {
    Gqa(Box<Gqa>),
    Mla(Box<Mla>),
}

struct Block {
    input_norm: Weight,
    attention: Attention,
    /// On the output of attention, where a layer has four norms.
    after_attention: Option<Weight>,
    /// Before the feed-forward part.
    post_norm: Weight,
    feed_forward: FeedForward,
    /// On its output.
    after_feed_forward: Option<Weight>,
}

/// Multi-token prediction of depth one (V3 report, section 2.2); used in training only.
struct Mtp {
    enorm: Weight,
    hnorm: Weight,
    /// Over `[embedding; hidden]`: `[H, 2H]`.
    eh_proj: Weight,
    block: Block,
    norm: Weight,
}

/// How a pass is to be run.
#[derive(Clone, Copy, Debug, Default)]
pub struct PassOptions {
    /// Keep only each layer's input and run the layer again on the way back.
    pub recompute: bool,
    /// Weight of the sequence-wise balance loss.
    pub balance_alpha: f32,
}

/// What a pass gives.
pub struct Pass {
    /// The last hidden states after the final norm, `[tokens, H]`: what the head reads.
    pub hidden: Tensor,
    /// The load of the routed experts, layer by layer.
    pub loads: Vec<ExpertLoad>,
}

/// The residual stream of a pass between two layers.
pub struct Stream {
    batch: Arc<BatchInfo>,
    x: Tensor,
    /// What the last layer is still to add to it.
    delta: Option<Tensor>,
    /// Layers that it has gone through.
    done: usize,
}

impl Stream {
    fn through(&mut self, layer: impl FnOnce((&Tensor, Option<&Tensor>), &BatchInfo) -> (Tensor, Tensor)) {
        let (x, delta) = layer((&self.x, self.delta.as_ref()), &self.batch);
        (self.x, self.delta) = (x, Some(delta));
        self.done += 1;
    }
}

/// A batch of whole sequences for a pass without a cache.
pub fn whole(lens: &[usize]) -> Vec<Segment> {
    lens.iter().map(|&rows| Segment { rows, past: 0, pages: Vec::new() }).collect()
}

impl Model {
    /// A model with random weights: projections normal with `initializer_range`, norms one, biases zero.
    ///
    /// # Panics
    /// The configuration must have been validated, and have a [place](place_of).
    pub fn random(config: ModelConfig, seed: u64) -> Model {
        let std = config.initializer_range() as f32;
        let specs = tensor_specs(&config);
        let mut model = Model::zeros(config);
        let places: Vec<Weight> = model.params.list().iter().map(|p| p.weight).collect();
        let data = model.params.data_mut();
        for (i, (spec, w)) in specs.iter().zip(places).enumerate() {
            let to = &mut data[w.offset..w.offset + w.len()];
            match spec.kind {
                TensorKind::Norm => to.fill(1.0),
                TensorKind::Bias | TensorKind::RouterBias => {}
                _ => {
                    threads::parallel_chunks(to, 1 << 14, |at, to| {
                        let mut rng = Rng::at(seed, &[i as u64]);
                        rng.skip(Rng::PER_NORMAL * at as u64);
                        to.iter_mut().for_each(|x| *x = std * rng.normal());
                    });
                }
            }
        }
        let place = place_of(&model.config).unwrap_or_else(|reason| panic!("{reason}"));
        model.place(place);
        model
    }

    fn zeros(config: ModelConfig) -> Model {
        let specs = tensor_specs(&config);
        let params =
            Params::new(specs.into_iter().map(|s| (s.name, s.shape, s.kind != TensorKind::RouterBias)));
        Model::of(config, params, None)
    }

    /// A model over parameters that are those of its configuration, and perhaps of an adapter.
    pub(crate) fn of(config: ModelConfig, params: Params, adapter: Option<AdapterConfig>) -> Model {
        let mut specs = tensor_specs(&config);
        specs.extend(params.list()[specs.len()..].iter().map(adapter_spec));
        let parts = Parts { params: &params, adapter: adapter.as_ref() };
        let spec = config.rope_tables_spec();
        let shape = match &config {
            ModelConfig::Gqa(c) => Gqa::shape(c, spec.softmax_scale),
            ModelConfig::Mla(c) => Mla::shape(c, spec.softmax_scale),
        };
        let embed = params.weight("model.embed_tokens.weight");
        let head = params.find("lm_head.weight").unwrap_or(embed);
        let blocks = (0..config.num_hidden_layers()).map(|l| Block::new(parts, &config, l)).collect();
        let mtp = match &config {
            ModelConfig::Mla(c) if c.num_nextn_predict_layers > 0 => Some(Mtp::new(parts, &config)),
            _ => None,
        };
        let positions = config.max_position_embeddings().min(FIRST_POSITIONS);
        Model {
            norm: params.weight("model.norm.weight"),
            eps: config.rms_norm_eps() as f32,
            ropes: ropes(&config, positions),
            embedding_scale: embedding_scale(&config),
            generation: GenerationConfig::of_model(&config),
            notices: Vec::new(),
            source: PathBuf::new(),
            specs,
            adapter,
            config,
            stored_bytes: params.bytes(),
            params,
            embed,
            blocks,
            head,
            mtp,
            shape,
        }
    }

    /// Writes `config.json`, `generation_config.json` and the weights as float32 in shards of at most 4 GiB; of a model with an
    /// adapter, the adapter's folder.
    pub fn save(&self, dir: &Path) -> Result<(), FileError> {
        self.save_as(dir, WeightType::F32)
    }

    /// A parameter as a Hugging Face folder has it.
    fn on_disk(&self, spec: &TensorSpec, p: &Param) -> Values<'_> {
        let values = self.params.values(p.weight);
        match spec.kind == TensorKind::Norm && self.config.norms_from_one() {
            true => {
                let mut values = Buf::copy_of(&values);
                values.iter_mut().for_each(|x| *x -= 1.0);
                Values::Unpacked(values)
            }
            false => values,
        }
    }

    /// Tells these weights from those of other models of the same shape, in whatever type they are stored: FNV-1a over all norms,
    /// which are never quantised, rounded to bf16.
    pub(crate) fn base_mark(&self) -> String {
        let norms =
            self.specs.iter().zip(self.params.list()).filter(|(spec, _)| spec.kind == TensorKind::Norm);
        let hash = norms.fold(FNV, |hash, (_, param)| {
            let values = self.params.get(param.weight).iter();
            values.fold(hash, |hash, x| fnv(hash, &half::bf16::from_f32(*x).to_le_bytes()))
        });
        format!("{hash:016x}")
    }

    /// Writes the adapter alone, as PEFT does, with the name of the model that it belongs to.
    fn save_adapter(&self, dir: &Path, config: &AdapterConfig) -> Result<(), FileError> {
        let own: Vec<&Param> = self.params.list().iter().filter(|p| base_of(&p.name).is_some()).collect();
        let mut targets: Vec<String> = own.iter().filter_map(|p| module_name(&p.name)).collect();
        targets.sort_unstable();
        targets.dedup();
        let source = self.source.canonicalize().unwrap_or_else(|_| self.source.clone());
        let tensors = own.iter().map(|p| (p.name.as_str(), &p.shape[..], self.params.get(p.weight)));
        files::write_adapter(&files::peft::weights_path(dir), &self.base_mark(), tensors)?;
        files::write_generation_config(dir, &self.generation)?;
        files::peft::write_config(dir, config, &targets, &source)
    }

    /// The same with the weights in the given type; of a model with an adapter the adapter.
    pub fn save_as(&self, dir: &Path, kind: WeightType) -> Result<(), FileError> {
        if let Some(adapter) = &self.adapter {
            return self.save_adapter(dir, adapter);
        }
        files::write_config(dir, &self.config, kind)?;
        files::write_generation_config(dir, &self.generation)?;
        let values: Vec<Values> =
            self.specs.iter().zip(self.params.list()).map(|(s, p)| self.on_disk(s, p)).collect();
        let tensors =
            self.params.list().iter().zip(&values).map(|(p, v)| (p.name.as_str(), &p.shape[..], &v[..]));
        files::write_weights(dir, tensors, kind, 4 << 30)?;
        Ok(())
    }

    /// What is known of it beside its weights.
    /// Bytes of the weights, held as the use asked for, whatever a GPU unpacked: the same number on every device.
    pub fn stored_bytes(&self) -> usize {
        self.stored_bytes
    }

    pub(crate) fn set_stored_bytes(&mut self, bytes: usize) {
        self.stored_bytes = bytes;
    }

    pub(crate) fn describe(&mut self, generation: GenerationConfig, notices: Vec<String>, source: PathBuf) {
        (self.generation, self.notices, self.source) = (generation, notices, source);
    }

    /// Adds the adapters to the weights that they belong to, in f32, after which all weights are trained.
    pub(crate) fn merge(&mut self) {
        let Some(config) = self.adapter.take() else { return };
        let mut merged = Model::zeros(self.config.clone());
        for (spec, from) in self.specs.iter().zip(self.params.list()) {
            if base_of(&spec.name).is_none() {
                merged.params.set(merged.params.weight(&spec.name), &self.params.values(from.weight));
            }
        }
        for a in self.specs.iter().filter(|spec| spec.name.ends_with(".lora_A.weight")) {
            let base = base_of(&a.name).expect("the name of an adapter's matrix");
            let b = self.params.weight(&a.name.replace(".lora_A.", ".lora_B."));
            let (a, w) = (self.params.weight(&a.name), merged.params.weight(&base));
            let delta = ops::outer(self.params.get(b), self.params.get(a), a.rows, config.scale());
            merged.params.values_mut(w).iter_mut().zip(&*delta).for_each(|(w, d)| *w += d);
        }
        merged.describe(self.generation.clone(), self.notices.clone(), self.source.clone());
        let gpu = self.params.gpu().cloned();
        merged.place(Place { gpu, notice: None });
        *self = merged;
    }

    /// The adapters that it has beside its weights, if any.
    pub fn adapter(&self) -> Option<&AdapterConfig> {
        self.adapter.as_ref()
    }
    /// What each of its parameters is, in their order: the configuration's tensors, then an adapter's.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }
    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }
    /// How the model wants to be sampled from, and where its answers end.
    pub fn generation(&self) -> &GenerationConfig {
        &self.generation
    }
    /// The same, for what is learnt about it; it is saved with the model.
    pub fn generation_mut(&mut self) -> &mut GenerationConfig {
        &mut self.generation
    }
    /// What was noticed when the model was read, for whoever uses it.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }
    /// The parameters.
    pub fn params(&self) -> &Params {
        &self.params
    }
    /// The parameters, to train them.
    pub fn params_mut(&mut self) -> &mut Params {
        &mut self.params
    }
    /// Moves the model, and all work on it, to its place.
    pub(crate) fn place(&mut self, place: Place) {
        self.params.move_to(place.gpu.as_ref());
        self.notices.extend(place.notice);
    }
    /// The output head, `[vocab, H]`.
    pub fn head(&self) -> Weight {
        self.head
    }
    /// Whether the model has an MTP layer.
    pub fn has_mtp(&self) -> bool {
        self.mtp.is_some()
    }
    /// A cache without pages.
    pub fn new_cache(&self) -> KvCache {
        KvCache::new(self.blocks.len(), self.shape, self.params.gpu())
    }
    /// The same with room for the MTP layer, as [`Model::look_ahead`] needs it.
    pub fn new_cache_with_mtp(&self) -> KvCache {
        KvCache::new(self.blocks.len() + usize::from(self.has_mtp()), self.shape, self.params.gpu())
    }
    /// Positions that a pass may use at present.
    pub fn positions(&self) -> usize {
        self.ropes.main.positions()
    }
    /// Makes a pass of sequences of up to `n` tokens possible.
    pub fn reserve_positions(&mut self, n: usize) {
        if n > self.ropes.main.positions() {
            self.ropes = ropes(&self.config, n.next_power_of_two());
        }
    }

    /// From token ids to the last hidden states. `segments` lists the batch's sequences; with `cache` each
    /// continues after its `past` tokens, whose keys and values lie in its pages.
    ///
    /// # Panics
    /// On ids outside the vocabulary and positions beyond [`Model::positions`].
    pub fn forward<'p>(
        &'p self,
        tape: &Tape<'p>,
        tokens: &[u32],
        segments: &[Segment],
        options: PassOptions,
        mut cache: Option<&mut KvCache>,
    ) -> Pass {
        let mut stream = self.enter(tape, tokens, segments, options);
        let loads = Rc::new(RefCell::new(Vec::new()));
        for (l, block) in self.blocks.iter().enumerate() {
            if options.recompute && tape.is_recording() {
                let (batch, loads) = (stream.batch.clone(), loads.clone());
                stream.x = tape.recomputed(&stream.x, move |tape, x| {
                    let (h, d) = self.block(tape, block, (x, None), &batch, None, &loads);
                    ops::add(tape, &h, &d)
                });
            } else {
                let layer = cache.as_mut().map(|c| &mut c.layers[l]);
                stream.through(|x, batch| self.block(tape, block, x, batch, layer, &loads));
            }
        }
        let loads = loads.borrow().clone();
        Pass { hidden: self.leave(tape, &stream), loads }
    }

    /// Begins a pass in generation that takes one layer at a time, so that something else may be done between them.
    ///
    /// # Panics
    /// As [`Model::forward`].
    pub fn begin(&self, tokens: &[u32], segments: &[Segment]) -> Stream {
        self.enter(&Tape::inference(&self.params), tokens, segments, PassOptions::default())
    }

    /// Runs the next layer of a pass; after the last one gives the hidden states of [`Pass`].
    pub fn advance(&self, stream: &mut Stream, cache: &mut KvCache) -> Option<Tensor> {
        let tape = Tape::inference(&self.params);
        let layer = stream.done;
        let (block, kept, loads) = (&self.blocks[layer], &mut cache.layers[layer], RefCell::default());
        stream.through(|x, batch| self.block(&tape, block, x, batch, Some(kept), &loads));
        if let Some(gpu) = self.params.gpu() {
            gpu.synchronize();
        }
        (stream.done == self.blocks.len()).then(|| self.leave(&tape, stream))
    }

    fn enter<'p>(
        &'p self,
        tape: &Tape<'p>,
        tokens: &[u32],
        segments: &[Segment],
        options: PassOptions,
    ) -> Stream {
        let mut x = ops::embedding(tape, tokens, self.embed);
        if let Some(scale) = self.embedding_scale {
            x = ops::scaled(tape, &x, scale);
        }
        Stream { batch: Arc::new(BatchInfo::new(segments, options.balance_alpha)), x, delta: None, done: 0 }
    }

    fn leave<'p>(&'p self, tape: &Tape<'p>, stream: &Stream) -> Tensor {
        match &stream.delta {
            Some(d) => ops::add_rms_norm(tape, &stream.x, d, self.norm, self.eps).1,
            None => ops::rms_norm(tape, &stream.x, self.norm, self.eps),
        }
    }

    /// The MTP layer: from the main model's hidden states and the tokens that follow each of them to hidden states
    /// that predict one token further. Panics if the model has none.
    pub fn forward_mtp<'p>(
        &'p self,
        tape: &Tape<'p>,
        hidden: &Tensor,
        next_tokens: &[u32],
        segments: &[Segment],
        options: PassOptions,
    ) -> Pass {
        self.mtp_layer(tape, hidden, next_tokens, segments, options, None)
    }

    /// The MTP layer in generation: its keys and values are kept in the last layer of a cache that has room for it.
    pub fn look_ahead(
        &self,
        hidden: &Tensor,
        next_tokens: &[u32],
        segments: &[Segment],
        cache: &mut KvCache,
    ) -> Tensor {
        let tape = Tape::inference(&self.params);
        let layer = Some(&mut cache.layers[self.blocks.len()]);
        self.mtp_layer(&tape, hidden, next_tokens, segments, PassOptions::default(), layer).hidden
    }

    fn mtp_layer<'p>(
        &'p self,
        tape: &Tape<'p>,
        hidden: &Tensor,
        next_tokens: &[u32],
        segments: &[Segment],
        options: PassOptions,
        cache: Option<&mut KvLayer>,
    ) -> Pass {
        let mtp = self.mtp.as_ref().expect("a model with an MTP layer");
        let batch = BatchInfo::new(segments, options.balance_alpha);
        let loads = RefCell::new(Vec::new());
        let e = ops::rms_norm(tape, &ops::embedding(tape, next_tokens, self.embed), mtp.enorm, self.eps);
        let h = ops::rms_norm(tape, hidden, mtp.hnorm, self.eps);
        let x = ops::linear(tape, &ops::concat_cols(tape, &e, &h), mtp.eh_proj, None);
        let (x, delta) = self.block(tape, &mtp.block, (&x, None), &batch, cache, &loads);
        let hidden = ops::add_rms_norm(tape, &x, &delta, mtp.norm, self.eps).1;
        Pass { hidden, loads: loads.into_inner() }
    }

    /// One layer on the residual stream `x` (to which `delta` is still to be added); gives the same pair.
    fn block<'p>(
        &'p self,
        tape: &Tape<'p>,
        block: &Block,
        (x, delta): (&Tensor, Option<&Tensor>),
        batch: &BatchInfo,
        cache: Option<&mut KvLayer>,
        loads: &RefCell<Vec<ExpertLoad>>,
    ) -> (Tensor, Tensor) {
        let (x, normed) = match delta {
            Some(d) => ops::add_rms_norm(tape, x, d, block.input_norm, self.eps),
            None => (x.clone(), ops::rms_norm(tape, x, block.input_norm, self.eps)),
        };
        let a = match &block.attention {
            Attention::Gqa(a) => a.forward(tape, &normed, batch, &self.ropes, self.shape, cache),
            Attention::Mla(a) => a.forward(tape, &normed, batch, &self.ropes, self.shape, cache),
        };
        let after = |y: Tensor, norm: Option<Weight>| match norm {
            Some(norm) => ops::rms_norm(tape, &y, norm, self.eps),
            None => y,
        };
        let a = after(a, block.after_attention);
        let (x, normed) = ops::add_rms_norm(tape, &x, &a, block.post_norm, self.eps);
        let (y, load) = block.feed_forward.forward(tape, &normed, &batch.lens, batch.alpha);
        let y = after(y, block.after_feed_forward);
        loads.borrow_mut().extend(load);
        (x, y)
    }
}

impl Block {
    fn new(parts: Parts, config: &ModelConfig, layer: usize) -> Block {
        let prefix = format!("model.layers.{layer}.");
        let (attention, feed_forward) = match config {
            ModelConfig::Gqa(c) => {
                let ff = match &c.experts {
                    Some(experts) => FeedForward::routed(parts, experts, &prefix),
                    None => FeedForward::dense(parts, &prefix, c.activation),
                };
                (Attention::Gqa(Box::new(Gqa::new(parts, c, layer, &prefix))), ff)
            }
            ModelConfig::Mla(c) => {
                let ff = match c.is_moe_layer(layer) {
                    true => FeedForward::shared(parts, c, &prefix),
                    false => FeedForward::dense(parts, &prefix, Activation::Silu),
                };
                (Attention::Mla(Box::new(Mla::new(parts, c, &prefix))), ff)
            }
        };
        let norm = |name: &str| parts.params.weight(&format!("{prefix}{name}.weight"));
        let sandwich = matches!(config, ModelConfig::Gqa(c) if c.sandwich_norms);
        let before = if sandwich { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
        Block {
            input_norm: norm("input_layernorm"),
            attention,
            after_attention: sandwich.then(|| norm("post_attention_layernorm")),
            post_norm: norm(before),
            feed_forward,
            after_feed_forward: sandwich.then(|| norm("post_feedforward_layernorm")),
        }
    }
}

impl Mtp {
    fn new(parts: Parts, config: &ModelConfig) -> Mtp {
        let layer = config.num_hidden_layers();
        let w = |name: &str| parts.params.weight(&format!("model.layers.{layer}.{name}.weight"));
        Mtp {
            enorm: w("enorm"),
            hnorm: w("hnorm"),
            eh_proj: w("eh_proj"),
            block: Block::new(parts, config, layer),
            norm: w("shared_head.norm"),
        }
    }
}

/// What a matrix of an adapter is.
fn adapter_spec(p: &Param) -> TensorSpec {
    let number = |name: &str| name.split("layers.").nth(1)?.split('.').next()?.parse().ok();
    let (name, shape, layer) = (p.name.clone(), p.shape.clone(), number(&p.name));
    TensorSpec { name, shape, kind: TensorKind::Matrix, layer }
}

/// The last part of the name of the projection that an adapter's matrix belongs to.
fn module_name(name: &str) -> Option<String> {
    Some(base_of(name)?.strip_suffix(".weight")?.rsplit('.').next()?.to_owned())
}

fn ropes(config: &ModelConfig, positions: usize) -> Ropes {
    let table = |spec: RopeTablesSpec| {
        let pairs = if spec.interleaved { Pairs::Interleaved } else { Pairs::Halves };
        RopeTable::new(&spec.inv_freq, spec.attention_scaling, positions, pairs)
    };
    Ropes { main: table(config.rope_tables_spec()), local: config.local_rope_tables_spec().map(table) }
}

fn embedding_scale(config: &ModelConfig) -> Option<f32> {
    let scaled = matches!(config, ModelConfig::Gqa(c) if c.scaled_embedding);
    scaled.then(|| (config.hidden_size() as f64).sqrt() as f32)
}
