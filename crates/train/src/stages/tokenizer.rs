//! `tokenizer`: a byte-level BPE on the run's own text.

use std::path::Path;

use data::{Tokenizer, TrainOptions, read_texts_with};
use serde::{Deserialize, Serialize};
use tasks::Style;
use tasks::corpus::Blend;

use super::{Earlier, Makes, Stage, StageResult};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::settings::check::{At, Checked};
use crate::source::Source;

/// Trains a byte-level BPE on what `source` gives; each digit is a token of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TokenizerStage {
    /// Entries of the vocabulary, special tokens included.
    pub vocab_size: usize,
    /// How many documents of the source are read; 0 reads all of a folder.
    pub documents: usize,
    /// The text to learn from.
    pub source: Source,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        TokenizerStage { vocab_size: 1024, documents: 20_000, source: Source::Problems }
    }
}

impl Stage for TokenizerStage {
    fn makes(&self) -> Makes {
        Makes::Tokenizer
    }

    fn resolve(&mut self, _: &Earlier) {}

    fn check(&self, at: &At, _: &Earlier) -> Checked {
        // 256 bytes and a few special tokens are the least that any text needs.
        at.number("vocab_size", self.vocab_size as f64, 264.0..=1_000_000.0)?;
        self.source.check(at)
    }

    fn draws_problems(&self) -> bool {
        self.source == Source::Problems
    }

    fn files(&self) -> Vec<(&'static str, &Path)> {
        self.source.files()
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let meter = ctx.meter(name, None);
        let options = TrainOptions::reasoning(self.vocab_size);
        let tokenizer = match &self.source {
            Source::Problems => {
                let problems = ctx.problems()?;
                let texts = (0..self.documents as u64).map(|i| {
                    // Documents and conversations alike, so that prompts and traces get their words too.
                    if i % 2 == 0 {
                        problems.document(None, i, Blend { hurried: 0.3, ..Blend::default() })
                    } else {
                        let p = problems.solved(None, 0, i);
                        format!("{}\n{}", p.prompt, tasks::corpus::completion(&p, Style::Careful, i))
                    }
                });
                Tokenizer::train(texts.collect::<Vec<_>>().into_iter(), &options)?
            }
            Source::Files(files) => {
                let texts = read_texts_with(&files.path, &files.extensions)?.texts();
                let limit = if self.documents == 0 { usize::MAX } else { self.documents };
                Tokenizer::train_fallible(texts.take(limit), &options)?
            }
        };
        tokenizer.save(&ctx.folder.stage_dir(name)?)?;
        let ids = tokenizer.vocab_size();
        Ok(StageResult {
            cost: meter.stop().over(&ctx.team),
            summary: format!("{ids} tokens"),
            figures: Figures::of([("vocab_size", ids as f64)]),
        })
    }
}
