//! Clocks that are minutes off, either way: of a market, of a provider, and of the chain.

use crate::{Sim, scenario::Scenario};

/// How far a clock is off at most.
const OFF_MS: u64 = 300_000;

impl Sim {
    /// Sets the clocks of the market, of each provider, and of the chain. The processes of one operator have one clock.
    pub(crate) fn set_clocks_wrong(&mut self) {
        let offset = self.offset("the market");
        for process in &mut self.markets {
            process.offset_ms = offset;
        }
        for site in 0..self.sites.len() {
            let offset = self.offset("a provider");
            for process in &mut self.sites[site].processes {
                process.offset_ms = offset;
            }
        }
        self.faults.chain_offset_ms = self.offset("the chain");
    }

    /// By how many milliseconds a clock is off: none, or minutes either way.
    fn offset(&mut self, whose: &str) -> i64 {
        let off = self.random.between(60_000, OFF_MS).cast_signed();
        let offset = self.random.pick(&[0, off, -off]).copied().unwrap_or(0);
        self.note(|| format!("the clock of {whose} is off by {} s", offset / 1000));
        if offset != 0 {
            self.invariants.count(format!("wrong clock of {whose}"));
        }
        offset
    }

    /// Sets all clocks right that the scenario set wrong.
    pub(crate) fn set_clocks_right(&mut self) {
        if !self.faults.contains(Scenario::WrongClocks) {
            return;
        }
        self.faults.chain_offset_ms = 0;
        for process in &mut self.markets {
            process.offset_ms = 0;
        }
        for process in self.sites.iter_mut().flat_map(|site| &mut site.processes) {
            process.offset_ms = 0;
        }
    }
}
