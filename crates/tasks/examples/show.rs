//! Prints problems of a task with a careful and a hurried solution, and some pretraining text.
//! `cargo run -p shoestring-tasks --example show -- countdown 3`

use tasks::corpus::Blend;
use tasks::{Level, Mix, Split, Style, corpus, task};

fn main() -> Result<(), tasks::Error> {
    let mut args = std::env::args().skip(1);
    let names = args.next().map_or_else(tasks::task_names, |name| vec![name.leak() as &'static str]);
    let count = args.next().and_then(|n| n.parse().ok()).unwrap_or(3);
    for name in names {
        let task = task(name)?;
        println!("== {name}: {}", task.describe());
        for index in 0..count {
            let problem = task.problem(Split::Train, 1, index, &Level::default());
            println!("\n{}", problem.prompt);
            for style in [Style::Careful, Style::Hurried] {
                let text = corpus::completion(&problem, style, index);
                println!("  {style:?} ({} tokens): {text}", corpus::token_estimate(&text));
            }
        }
        println!();
    }
    println!("== pretraining text");
    let (mix, blend) = (Mix::launch(), Blend { hurried: 0.3, ..Blend::default() });
    for index in 0..count {
        println!("{}", corpus::document(&mix, Some(&mix), 1, index, blend));
    }
    for index in 0..8 {
        println!("{}", corpus::drill(&mix, 1, index));
    }
    Ok(())
}
