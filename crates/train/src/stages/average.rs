//! `average`: a model between two others of one shape, weight by weight.

use model::{Model, Use};
use serde::{Deserialize, Serialize};

use super::{Earlier, Makes, Stage, StageResult};
use crate::TrainError;
use crate::context::Context;
use crate::finished::Figures;
use crate::settings::check::{At, Checked};

/// `(1 - share) · from + share · with`. Between a model and what it was fine-tuned from lie models that forgot much less and learnt
/// nearly as much (WiSE-FT: Wortsman et al. 2022, arXiv:2109.01903). Costs nothing but reading and writing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AverageStage {
    /// An earlier stage or a model folder; by default the last model before this stage. Its tokenizer is kept.
    pub from: String,
    /// The other one: as a rule, the model that fine-tuning began with.
    pub with: String,
    /// How much of `with` is in the result.
    pub share: f64,
}

impl Default for AverageStage {
    fn default() -> Self {
        AverageStage { from: String::new(), with: String::new(), share: 0.15 }
    }
}

impl Stage for AverageStage {
    fn makes(&self) -> Makes {
        Makes::Model
    }

    fn resolve(&mut self, earlier: &Earlier) {
        earlier.fill(&mut self.from, Makes::Model);
    }

    fn check(&self, at: &At, earlier: &Earlier) -> Checked {
        earlier.model(at, "from", &self.from)?;
        earlier.model(at, "with", &self.with)?;
        at.number("share", self.share, 0.0..=1.0)
    }

    fn model(&self) -> Option<&str> {
        Some(&self.from)
    }

    fn built_on(&self) -> Vec<&str> {
        vec![&self.from, &self.with]
    }

    fn draws_problems(&self) -> bool {
        false
    }

    fn run(&self, ctx: &Context, name: &str) -> Result<StageResult, TrainError> {
        let meter = ctx.meter(name, None);
        let (mut model, tokenizer) = ctx.model(&self.from, Use::Train)?;
        let (other, _) = ctx.model(&self.with, Use::Train)?;
        if !same_shapes(&model, &other) {
            return Err(TrainError::Recipe(format!(
                "stage `{name}`: `{}` and `{}` are no models of one shape, so there is nothing between them",
                self.from, self.with
            )));
        }
        let share = self.share as f32;
        let pairs = model.params_mut().data_mut().iter_mut().zip(other.params().data());
        pairs.for_each(|(x, y)| *x += share * (y - *x));
        let dir = ctx.folder.stage_dir(name)?;
        if ctx.team.leads() {
            model.save(&dir)?;
            tokenizer.save(&dir)?;
        }
        Ok(StageResult {
            cost: meter.stop().over(&ctx.team),
            summary: format!("{:.0} % of {}", 100.0 * self.share, self.with),
            figures: Figures::default(),
        })
    }
}

/// Whether the weights of both are the same list of matrices.
fn same_shapes(a: &Model, b: &Model) -> bool {
    let shapes = |m: &Model| m.params().list().iter().map(|p| (p.name.clone(), p.shape.clone())).collect::<Vec<_>>();
    shapes(a) == shapes(b)
}
