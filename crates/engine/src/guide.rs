//! What decides which tokens may come next.

use std::sync::Arc;

/// Makes the guide of a sample.
pub type MakeGuide = Arc<dyn Fn() -> Box<dyn Guide> + Send + Sync>;

/// Decides which tokens may come next in a continuation: a grammar, or an end to thinking.
pub trait Guide: Send {
    /// What may come next.
    fn allowed(&mut self) -> Allowed;
    /// Takes note of the token that came.
    fn accept(&mut self, token: u32);
    /// Whether the continuation is whole as it stands: one that ends sooner counts as cut off.
    fn is_whole(&mut self) -> bool {
        true
    }
}

/// What may come next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Every token.
    All,
    /// The tokens whose bit is set: token `t` is bit `t % 32` of word `t / 32`. At least one.
    Set(Vec<u32>),
    /// This token and no other.
    Only(u32),
}
