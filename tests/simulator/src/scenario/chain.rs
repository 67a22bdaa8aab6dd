//! Scenarios of the chain.

use crate::Sim;

impl Sim {
    /// Replaces the newest blocks. Half of their transactions are in no later block.
    pub(crate) fn drop_transactions(&mut self) {
        let Self { chain, random, .. } = self;
        let depth = usize::try_from(random.between(1, 6)).unwrap_or(1);
        chain.reorganise(depth, || random.per_mille(500));
        self.note(|| format!("the newest {depth} blocks are reorganised, and transactions are dropped"));
    }
}
