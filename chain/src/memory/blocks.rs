//! The chain below the machine: a limited number of blocks, each with the complete state after it.

use std::collections::VecDeque;

use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountAt, Address, Hash, Terms, keccak},
    ports::{Cursor, Head, Opened},
};

use crate::machine::{Action, Machine, Refusal};

/// Number of blocks stored; no reorganisation goes further back.
const BLOCKS_MAX: usize = 512;

/// A marked block, for a later rewind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(Hash);

#[derive(Clone)]
pub(super) struct Block {
    pub(super) head: Head,
    /// State after this block.
    pub(super) machine: Machine,
    /// Accounts opened in this block.
    opened: Vec<Opened>,
}

impl Block {
    /// The account in this block.
    pub(super) fn account(&self, terms: &Terms) -> AccountAt {
        AccountAt {
            block: self.head,
            read: self.machine.read(terms, self.head.time),
        }
    }

    /// Executes a call in this block.
    pub(super) fn run(&mut self, caller: Address, action: &Action) -> Result<(), Refusal> {
        let moved = self.machine.apply(caller, action, self.head.time)?;
        if let Action::Open { terms, .. } = action {
            self.opened.push(Opened {
                terms: terms.clone(),
                deposit: TokenAmount(moved.0),
                block_number: self.head.number,
            });
        }
        Ok(())
    }
}

/// The newest blocks, and the accounts opened in older ones.
pub(super) struct Blocks {
    blocks: VecDeque<Block>,
    opened_before: Vec<Opened>,
    /// Incremented with each reorganisation, so that a replaced block gets a different hash.
    fork: u64,
}

impl Blocks {
    pub(super) fn starting_at(time: u64) -> Self {
        let block = Block {
            head: Head {
                number: 0,
                hash: keccak(&[b"genesis"]),
                time,
            },
            machine: Machine::default(),
            opened: Vec::new(),
        };
        Self {
            blocks: VecDeque::from([block]),
            opened_before: Vec::new(),
            fork: 0,
        }
    }

    pub(super) fn newest(&self) -> &Block {
        self.back(0)
    }

    /// The block that many before the newest one, or the oldest stored block.
    pub(super) fn back(&self, blocks: u64) -> &Block {
        let back = usize::try_from(blocks).unwrap_or(usize::MAX);
        &self.blocks[self.blocks.len().saturating_sub(1).saturating_sub(back)]
    }

    /// An empty block after the newest one, with that time or one second after it.
    pub(super) fn next(&self, time: u64) -> Block {
        let newest = self.newest();
        let number = newest.head.number + 1;
        Block {
            head: Head {
                number,
                hash: keccak(&[&self.fork.to_be_bytes(), &number.to_be_bytes()]),
                time: time.max(newest.head.time + 1),
            },
            machine: newest.machine.clone(),
            opened: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, block: Block) {
        self.blocks.push_back(block);
        if self.blocks.len() > BLOCKS_MAX
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.opened_before.extend(oldest.opened);
        }
    }

    pub(super) fn mark(&self) -> Mark {
        Mark(self.newest().head.hash)
    }

    /// Removes the newest `depth` blocks.
    pub(super) fn drop_newest(&mut self, depth: u64) -> bool {
        match usize::try_from(depth) {
            Ok(depth) if depth < self.blocks.len() => self.rewind(Mark(self.back(depth as u64).head.hash)),
            Ok(_) | Err(_) => false,
        }
    }

    /// Removes all blocks after the mark.
    pub(super) fn rewind(&mut self, mark: Mark) -> bool {
        let Some(keep) = self.blocks.iter().position(|block| block.head.hash == mark.0) else {
            return false;
        };
        self.blocks.truncate(keep + 1);
        self.fork += 1;
        true
    }

    /// All accounts opened up to that block.
    pub(super) fn opened_until(&self, number: u64) -> impl Iterator<Item = &Opened> {
        let recent = self.blocks.iter().flat_map(|block| &block.opened);
        self.opened_before
            .iter()
            .chain(recent)
            .filter(move |opened| opened.block_number <= number)
    }

    /// The block after which a reader continues; `None` (from the start) if the block was replaced.
    pub(super) fn resume(&self, cursor: Cursor) -> Option<u64> {
        let mut blocks = self.blocks.iter();
        blocks
            .any(|block| block.head.number == cursor.number && block.head.hash == cursor.hash)
            .then_some(cursor.number)
    }
}
