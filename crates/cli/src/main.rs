//! The `shoestring` binary.
fn main() {}
