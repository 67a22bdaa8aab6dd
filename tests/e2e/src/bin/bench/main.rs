//! Benchmarks: `cargo xtask bench NAME --json` prints one line per metric. Nothing here fails because of a time.

mod agent;
mod lease;
mod matching;
mod reach;
mod report;
mod scale;
mod story;

use clap::{Parser, Subcommand};

use report::Report;

#[derive(Parser)]
#[command(name = "bench", about = "Runs a benchmark and prints one line per metric")]
struct Flags {
    #[command(subcommand)]
    bench: Bench,
    /// Print one JSON object per line
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Bench {
    /// One lease against 10,000 offered rows
    Match,
    /// Leases on a real node from apply to Active and from deletion to the refund, one after the other
    Lease {
        /// Number of leases
        #[arg(long, default_value_t = 30)]
        leases: usize,
    },
    /// Memory and processor time of an optimized agent with eight GPUs and its default period
    Agent {
        /// Seconds to measure, after the agent has settled
        #[arg(long, default_value_t = 120)]
        seconds: u64,
    },
    /// Transactions and gas of the story with three providers
    Story,
    /// Many leases at once on nodes simulated by KWOK. The benchmark writes the GpuNodes and no agents run, so that
    /// the operators are measured
    Scale(scale::Flags),
    /// A lease behind the gateway, beside the same pod by a NodePort: round trip, throughput, CPU time, memory, kills
    Reach(reach::Flags),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let flags = Flags::parse();
    let report = Report { json: flags.json };
    match flags.bench {
        Bench::Match => {
            matching::run(&report);
            Ok(())
        }
        Bench::Lease { leases } => lease::run(&report, leases).await,
        Bench::Agent { seconds } => agent::run(&report, seconds).await,
        Bench::Story => story::run(&report).await,
        Bench::Scale(flags) => scale::run(&report, &flags).await,
        Bench::Reach(flags) => reach::run(&report, &flags).await,
    }
}
