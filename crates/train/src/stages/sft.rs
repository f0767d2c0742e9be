//! `sft`: supervised fine-tuning on conversations, with the loss on the assistant's turns.

use std::collections::BTreeMap;

use data::{
    Conversation, DataError, Document, Message, Records, Tokenizer, chat_len, encode_chat, fields_left_out,
    pack, permutation,
};
use serde_json::json;
use tasks::Style;

use super::StageResult;
use super::pretrain::step_outcome;
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::held_out::{HELD_OUT_DOCUMENTS, HeldOut};
use crate::learner::{Learner, Rhythm};
use crate::run::metrics::{Metrics, keys};
use crate::run::recipe::{Data, SftStage};
use crate::speaker::teach_ends;
use crate::step::StepOptions;

/// Turns from which on a conversation's length is looked at before it is encoded turn by turn.
const MANY_TURNS: usize = 64;
/// Training problems of this stage come after those of pretraining.
const FIRST_PROBLEM: u64 = 1 << 32;

pub(super) fn run(ctx: &Context, s: &SftStage) -> Result<StageResult, TrainError> {
    let (mut model, tokenizer) = ctx.model(&s.from)?;
    let seq_len = s.seq_len.min(model.config().max_position_embeddings());
    let fixed = match &s.data {
        Data::Problems => None,
        Data::Jsonl { jsonl } => Some(conversations(ctx, &tokenizer, jsonl, seq_len)?),
        Data::Stage { stage } => {
            Some(conversations(ctx, &tokenizer, &ctx.folder.stage_dir(stage)?.join("traces.jsonl"), seq_len)?)
        }
    };
    let mix = ctx.problems.as_ref().map(|p| p.training_mix(&s.mix)).transpose()?.flatten();
    match &fixed {
        Some(docs) => teach_ends(ctx, &s.name, &mut model, &tokenizer, docs),
        None => {
            let first = worked(ctx, &tokenizer, mix.as_ref(), 0, s.hurried_share)?;
            teach_ends(ctx, &s.name, &mut model, &tokenizer, &[first]);
        }
    }
    let rhythm = Rhythm {
        total: s.steps,
        scheduled: s.steps,
        sample_every: s.sample_every,
        checkpoint_every: s.checkpoint_every,
        checkpoint_seconds: s.checkpoint_seconds,
    };
    let options = StepOptions {
        mtp_weight: s.mtp_weight as f32,
        router_bias_rate: s.router_bias_rate as f32,
        balance_alpha: s.balance_alpha as f32,
        recompute: s.recompute,
        accumulate: s.accumulate,
        loss_limit: 0.0,
    };
    let mut learner = Learner::new(model, tokenizer, &s.optimizer);
    let seed = ctx.recipe.seed;
    learner.figures = json!({"left_out": 0});
    let held_out =
        if s.eval_every > 0 { held_out_documents(ctx, &learner.tokenizer, seq_len)? } else { Vec::new() };
    let cost = learner.run(
        ctx,
        &s.name,
        &s.schedule,
        rhythm,
        |l, _, factor, _| {
            let mut docs = Vec::new();
            let (mut tokens, mut too_long) = (0, 0);
            while tokens < s.batch_tokens {
                let index = l.cursor;
                l.cursor += 1;
                let doc = match &fixed {
                    Some(all) => nth(all, seed, index).clone(),
                    None => worked(ctx, &l.tokenizer, mix.as_ref(), index, s.hurried_share)?,
                };
                if doc.ids.len() > seq_len + 1 {
                    too_long += 1;
                    leave_out(l);
                    if too_long > 1000 && docs.is_empty() {
                        return Err(all_too_long(&s.name, doc.ids.len(), seq_len + 1));
                    }
                    continue;
                }
                tokens += doc.ids.len() - 1;
                docs.push(doc);
            }
            step_outcome(l, pack(&docs), StepOptions { loss_limit: l.loss_limit(), ..options }, factor)
        },
        |l, step, metrics| log_held_out(l, s.eval_every, step, &held_out, metrics),
    )?;
    Ok(StageResult {
        cost,
        summary: format!("loss {:.3}{}", learner.usual_loss, left_out_words(&learner)),
        figures: Figures::of([("loss", learner.usual_loss)]),
    })
}

pub(super) fn all_too_long(stage: &str, tokens: usize, limit: usize) -> TrainError {
    let what = format!("every worked problem of stage `{stage}`");
    TrainError::TooLong { what, tokens, limit, remedy: "raise `seq_len`" }
}

/// Counts a document that is longer than `seq_len`.
pub(super) fn leave_out(l: &mut Learner) {
    l.figures["left_out"] = (l.figures["left_out"].as_u64().unwrap_or(0) + 1).into();
}

/// Says how many documents were longer than `seq_len`, if any were.
pub(super) fn left_out_words(l: &Learner) -> String {
    match l.figures["left_out"].as_u64().unwrap_or(0) {
        0 => String::new(),
        n => format!(", {n} worked problems longer than `seq_len` left out"),
    }
}

/// The held-out problems of the recipe with careful worked solutions, as conversations; none where it has no problems.
pub(super) fn held_out_documents(
    ctx: &Context,
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<Vec<Document>, TrainError> {
    let problems = ctx.problems.iter().flat_map(|p| p.held_out()).take(HELD_OUT_DOCUMENTS);
    let documents = (0..).zip(problems).map(|(i, problem)| {
        let answer = tasks::corpus::completion(problem, Style::Careful, i);
        let turns = [Message::user(problem.prompt.clone()), Message::assistant(answer)];
        Ok(encode_chat(tokenizer, &Conversation::of(turns))?.into())
    });
    let mut documents = documents.collect::<Result<Vec<Document>, TrainError>>()?;
    documents.retain(|d| (2..=seq_len + 1).contains(&d.ids.len()));
    Ok(documents)
}

/// Logs the loss on held-out documents, if it is time.
pub(super) fn log_held_out(
    l: &Learner,
    every: u64,
    step: u64,
    documents: &[Document],
    metrics: &mut Metrics,
) -> Result<(), TrainError> {
    if every > 0 && step.is_multiple_of(every) && !documents.is_empty() {
        let measured = HeldOut::measure(&l.model, l.cursor, documents);
        metrics.log(step, &[(keys::EVAL_LOSS, measured.mean())])?;
    }
    Ok(())
}

/// Document `index` of an endless, in every epoch newly shuffled list.
pub(super) fn nth(all: &[Document], seed: u64, index: u64) -> &Document {
    let n = all.len() as u64;
    &all[permutation(seed, index / n, n)(index % n) as usize]
}

/// A worked problem as a conversation.
fn worked(
    ctx: &Context,
    tokenizer: &Tokenizer,
    mix: Option<&tasks::Mix>,
    index: u64,
    hurried_share: f64,
) -> Result<Document, TrainError> {
    let problems = ctx.problems()?;
    let index = FIRST_PROBLEM + index;
    let problem = problems.train(mix, index);
    let hurried = tasks::Rng::new(&[ctx.recipe.seed, index, 0x5f7]).chance(hurried_share);
    let style = if hurried { Style::Hurried } else { Style::Careful };
    let answer = tasks::corpus::completion(&problem, style, index);
    let turns = [Message::user(problem.prompt), Message::assistant(answer)];
    Ok(encode_chat(tokenizer, &Conversation::of(turns))?.into())
}

/// The conversations of a file. One that does not fit is an error that names its place.
pub(super) fn conversations(
    ctx: &Context,
    tokenizer: &Tokenizer,
    path: &std::path::Path,
    seq_len: usize,
) -> Result<Vec<Document>, TrainError> {
    let mut docs = Vec::new();
    let mut left_out: BTreeMap<String, usize> = BTreeMap::new();
    for record in Records::<Conversation>::open(path, &[])? {
        let (place, c) = record?;
        if !c.messages.iter().any(|m| m.role == "assistant" && m.learned) {
            let what = "there is no assistant's turn to learn, whose weight is not 0";
            return Err(place.error(what).into());
        }
        let refused = |e: DataError| place.error(e.to_string());
        let too_long = |tokens| TrainError::TooLong {
            what: place.to_string(),
            tokens,
            limit: seq_len + 1,
            remedy: "raise `seq_len`, or shorten it",
        };
        if c.messages.len() > MANY_TURNS {
            let tokens = chat_len(tokenizer, &c).map_err(refused)?;
            if tokens > seq_len + 1 {
                return Err(too_long(tokens));
            }
        }
        let doc: Document = encode_chat(tokenizer, &c).map_err(refused)?.into();
        for field in fields_left_out(tokenizer, &c).map_err(refused)? {
            *left_out.entry(field).or_default() += 1;
        }
        if doc.ids.len() < 2 {
            continue;
        }
        if doc.ids.len() > seq_len + 1 {
            return Err(too_long(doc.ids.len()));
        }
        docs.push(doc);
    }
    for (field, count) in left_out {
        ctx.reporter.note(&format!(
            "note: {}: the chat template leaves `{field}` out in {count} conversations, so that it is not learnt",
            path.display()
        ));
    }
    if docs.is_empty() {
        return Err(TrainError::Recipe(format!(
            "{}: it holds no conversation to learn from",
            path.display()
        )));
    }
    Ok(docs)
}
