//! A model with its tokenizer: what it takes to speak to it, and where its answers end.

use std::collections::BTreeSet;
use std::path::Path;

use data::answer::{completion_text, opening};
use data::{Document, Tokenizer};
use model::load::{base_path, config_of};
use model::{Model, ModelConfig, Use};

use crate::TrainError;

/// Reads a model and its tokenizer, from a folder or a GGUF file, with an adapter from a folder of its own if one is given;
/// `notice` is told what whoever uses them should know.
///
/// # Errors
/// Files that are missing or broken, and a tokenizer that is not the model's.
pub fn load(
    dir: &Path,
    adapter: Option<&Path>,
    wanted: Use,
    notice: impl Fn(&str),
) -> Result<(Model, Tokenizer), TrainError> {
    // The tokenizer is small: what is wrong with it is said before the weights are read. An adapter's folder may have one.
    let (_, tokenizer) = load_tokenizer(dir, adapter, &notice)?;
    let model = match adapter {
        Some(adapter) => Model::open_with(dir, adapter, wanted)?,
        None => Model::open(dir, wanted)?,
    };
    model.notices().iter().for_each(|text| notice(text));
    Ok((model, tokenizer))
}

/// Reads the tokenizer of a model, as [`load`] does, and the model's configuration.
///
/// # Errors
/// As [`load`].
pub fn load_tokenizer(
    dir: &Path,
    adapter: Option<&Path>,
    notice: impl Fn(&str),
) -> Result<(ModelConfig, Tokenizer), TrainError> {
    let places = [adapter, Some(dir)].into_iter().flatten();
    let own = places.clone().find(|place| place.join("tokenizer.json").exists());
    let tokenizer = Tokenizer::load(&own.map_or_else(|| base_path(dir), |own| Ok(own.to_path_buf()))?)?;
    let config = config_of(dir)?;
    let (tokens, vocab) = (tokenizer.vocab_size(), config.vocab_size());
    let mismatch = || TrainError::TokenizerMismatch { path: dir.to_path_buf(), tokens, vocab };
    let (tokenizer, beyond) = tokenizer.with_rows(vocab).ok_or_else(mismatch)?;
    if let Some(first) = beyond.first() {
        let n = beyond.len();
        notice(&format!(
            "note: the tokenizer in {} has {n} more than the model's {vocab} ids, from {first:?} on, which can be neither typed nor drawn",
            dir.display()
        ));
    }
    Ok((config, tokenizer))
}

/// The tokens that end an answer: those of the tokenizer, of the model, and of its `generation_config.json`.
pub fn stop_tokens(model: &Model, tokenizer: &Tokenizer) -> Vec<u32> {
    let mut ids = model.config().eos_token_id().to_vec();
    ids.extend(&model.generation().eos_token_id);
    ids.extend(tokenizer.eos_id());
    ids.retain(|&id| (id as usize) < model.config().vocab_size());
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// An answer in full: what the prompt has begun of it and what the model wrote.
///
/// # Errors
/// As [`Tokenizer::decode`].
pub fn answer_text(tokenizer: &Tokenizer, prompt: &[u32], completion: &[u32]) -> data::Result<String> {
    Ok(opening(tokenizer, prompt)? + &completion_text(tokenizer, completion)?)
}

/// Makes the tokens that end the turns of `docs` ends of the model's answers: it is about to learn to write them, and
/// nothing else would stop there. Says so, and says where turns have no end to learn.
pub(crate) fn teach_ends(
    note: &dyn Fn(&str),
    stage: &str,
    model: &mut Model,
    tokenizer: &Tokenizer,
    docs: &[Document],
) {
    let (ends, endless) = ends(tokenizer, docs);
    let known = stop_tokens(model, tokenizer);
    for id in ends.into_iter().filter(|id| !known.contains(id)) {
        let text = tokenizer.token_text(id).unwrap_or_default();
        let says = format!(
            "{stage}: its turns end in {text:?}, which the model's generation_config.json shall name too"
        );
        note(&says);
        model.generation_mut().eos_token_id.push(id);
    }
    if endless > 0 {
        note(&format!(
            "warning: {stage}: {endless} of its turns end in no control token, so that the model does not learn where to \
             stop: let the chat template write one after each turn of the assistant"
        ));
    }
}

/// The control tokens in which what is learnt of a turn ends, and the number of turns without one.
fn ends(tokenizer: &Tokenizer, docs: &[Document]) -> (BTreeSet<u32>, usize) {
    let (mut ends, mut endless) = (BTreeSet::new(), 0);
    for doc in docs {
        for (i, &id) in doc.ids.iter().enumerate() {
            let learnt = |i: usize| doc.weights.get(i).is_some_and(|&w| w > 0.0);
            if !learnt(i) || learnt(i + 1) {
                continue;
            }
            if tokenizer.is_special(id) || tokenizer.eos_id() == Some(id) {
                ends.insert(id);
            } else {
                endless += 1;
            }
        }
    }
    (ends, endless)
}
