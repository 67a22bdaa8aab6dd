//! The chain: blocks with the state of the escrow's machine, a mempool whose transactions can be mined late or get
//! lost, a node that can hang, and reorganisations.

use std::collections::{BTreeMap, VecDeque};

use leasehold_chain::machine::{Action, Machine, Refusal};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountRead, Address, Hash, Terms, keccak},
    ports::{Head, Opened},
};

use crate::{random::Random, reconcile::ProcessId};

/// Number of blocks stored. No reorganisation and no stale read goes further back: an endpoint is frozen for at most ten
/// minutes, and a block takes at least one second.
const BLOCKS_MAX: usize = 640;

/// A block is final when so many others follow it.
const FINAL_AFTER_BLOCKS: u64 = 6;

/// A pending transaction.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its number.
    pub id: u64,
    /// The process that sent it, and how often that had been restarted. `None` if no operator sent it.
    pub sender: Option<(ProcessId, u64)>,
    /// Who signed it.
    pub caller: Address,
    /// What it calls.
    pub action: Action,
}

/// One block, with the state after it.
#[derive(Clone)]
pub struct Block {
    /// Number, hash, time.
    pub head: Head,
    /// State after it.
    pub machine: Machine,
    opened: Vec<Opened>,
    mined: Vec<Transaction>,
}

/// The chain.
pub struct Chain {
    blocks: VecDeque<Block>,
    opened_before: Vec<Opened>,
    mempool: Vec<Transaction>,
    results: BTreeMap<u64, Result<(), Refusal>>,
    sent: u64,
    /// How often each call was mined.
    pub calls: BTreeMap<String, u64>,
    fork: u64,
    /// Number of the newest final block.
    final_number: u64,
    /// Whether the node hangs: it mines nothing and answers nothing.
    pub hung: bool,
    /// How many of a thousand pending transactions get into the next block.
    pub inclusion_per_mille: u64,
}

impl Chain {
    /// Creates a chain whose first block has that time.
    #[must_use]
    pub fn new(time: u64) -> Self {
        let block = Block {
            head: Head {
                number: 0,
                hash: keccak(&[b"genesis"]),
                time,
            },
            machine: Machine::default(),
            opened: Vec::new(),
            mined: Vec::new(),
        };
        Self {
            blocks: VecDeque::from([block]),
            opened_before: Vec::new(),
            mempool: Vec::new(),
            results: BTreeMap::new(),
            sent: 0,
            calls: BTreeMap::new(),
            fork: 0,
            final_number: 0,
            hung: false,
            inclusion_per_mille: 1000,
        }
    }

    /// Mints tokens in the first block.
    pub fn mint(&mut self, token: Address, to: Address, amount: TokenAmount) {
        if let Some(block) = self.blocks.back_mut() {
            block.machine.mint(token, to, amount);
        }
    }

    /// Lets the token reject every transfer to a holder from now on.
    pub fn block(&mut self, token: Address, holder: Address) {
        if let Some(block) = self.blocks.back_mut() {
            block.machine.block(token, holder);
        }
    }

    /// The newest block.
    #[must_use]
    pub fn newest(&self) -> &Block {
        self.back(0)
    }

    /// The block that many before the newest.
    #[must_use]
    pub fn back(&self, blocks: usize) -> &Block {
        &self.blocks[self.blocks.len() - 1 - blocks.min(self.blocks.len() - 1)]
    }

    /// By how many blocks the newest final block is behind the newest one.
    #[must_use]
    pub fn finality_lag(&self) -> usize {
        let lag = self.newest().head.number - self.final_number;
        usize::try_from(lag).unwrap_or(usize::MAX)
    }

    /// The stored blocks, the newest first.
    pub fn recent(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().rev()
    }

    /// All accounts opened up to a block.
    pub fn opened(&self, until: u64) -> impl Iterator<Item = &Opened> {
        let recent = self.blocks.iter().flat_map(|b| &b.opened);
        let all = self.opened_before.iter().chain(recent);
        all.filter(move |o| o.block_number <= until)
    }

    /// Adds a transaction to the mempool, unless the contract would reject it in the current state. A process joins a
    /// pending call of its own. It does not know the calls that another process sent, or that it sent before a restart.
    pub fn send(
        &mut self,
        sender: (ProcessId, u64),
        caller: Address,
        action: Action,
    ) -> Result<u64, Refusal> {
        let is_same = |t: &&Transaction| t.sender == Some(sender) && t.caller == caller && t.action == action;
        if let Some(same) = self.mempool.iter().find(is_same) {
            return Ok(same.id);
        }
        let newest = self.newest();
        newest.machine.clone().apply(caller, &action, newest.head.time)?;
        Ok(self.push(Some(sender), caller, action))
    }

    /// Adds a transaction that no operator sends to the mempool, even if it will be reverted.
    pub fn force(&mut self, caller: Address, action: Action) -> u64 {
        self.push(None, caller, action)
    }

    fn push(&mut self, sender: Option<(ProcessId, u64)>, caller: Address, action: Action) -> u64 {
        self.sent += 1;
        let id = self.sent;
        self.mempool.push(Transaction {
            id,
            sender,
            caller,
            action,
        });
        id
    }

    /// The result of a mined transaction.
    #[must_use]
    pub fn result(&self, id: u64) -> Option<&Result<(), Refusal>> {
        self.results.get(&id)
    }

    /// Removes a random transaction from the mempool.
    pub fn lose_one(&mut self, random: &mut Random) {
        if !self.mempool.is_empty() {
            let n = u64::try_from(self.mempool.len()).unwrap_or(1);
            self.mempool.remove(usize::try_from(random.below(n)).unwrap_or(0));
        }
    }

    /// Mines a block with that time. Transactions of one key are mined in the order in which they were sent.
    pub fn mine(&mut self, time: u64, random: &mut Random) {
        let newest = self.newest();
        let number = newest.head.number + 1;
        let mut block = Block {
            head: Head {
                number,
                hash: keccak(&[&self.fork.to_be_bytes(), &number.to_be_bytes()]),
                time: time.max(newest.head.time + 1),
            },
            machine: newest.machine.clone(),
            opened: Vec::new(),
            mined: Vec::new(),
        };
        let mut waiting: Vec<Transaction> = Vec::new();
        for transaction in std::mem::take(&mut self.mempool) {
            let blocked = waiting.iter().any(|w| w.caller == transaction.caller);
            if blocked || !random.per_mille(self.inclusion_per_mille) {
                waiting.push(transaction);
                continue;
            }
            let name = transaction.action.name();
            let done = block
                .machine
                .apply(transaction.caller, &transaction.action, block.head.time);
            if let (Ok(moved), Action::Open { terms, .. }) = (&done, &transaction.action) {
                block.opened.push(Opened {
                    terms: terms.clone(),
                    deposit: *moved,
                    block_number: number,
                });
            }
            let outcome = if done.is_ok() { "mined" } else { "reverts" };
            *self.calls.entry(format!("{name} {outcome}")).or_default() += 1;
            self.results.insert(transaction.id, done.map(drop));
            block.mined.push(transaction);
        }
        self.mempool = waiting;
        self.blocks.push_back(block);
        self.final_number = self.final_number.max(number.saturating_sub(FINAL_AFTER_BLOCKS));
        if self.blocks.len() > BLOCKS_MAX
            && let Some(oldest) = self.blocks.pop_front()
        {
            self.opened_before.extend(oldest.opened);
        }
    }

    /// Removes the newest blocks, except for final ones. Their transactions return to the front of the mempool, except for
    /// those that `is_dropped` selects, which are never mined. Returns the names of these calls.
    pub fn reorganise(&mut self, depth: usize, mut is_dropped: impl FnMut() -> bool) -> Vec<&'static str> {
        let depth = depth.min(self.finality_lag());
        if depth + 1 >= self.blocks.len() {
            return Vec::new();
        }
        let keep = self.blocks.len() - depth;
        let dropped = self.blocks.split_off(keep);
        let mut back: Vec<Transaction> = dropped.into_iter().flat_map(|b| b.mined).collect();
        for transaction in &back {
            self.results.remove(&transaction.id);
        }
        let gone = back.extract_if(.., |_| is_dropped());
        let gone = gone.map(|t| t.action.name()).collect();
        back.append(&mut self.mempool);
        self.mempool = back;
        self.fork += 1;
        gone
    }

    /// The account in the newest block.
    #[must_use]
    pub fn account(&self, terms: &Terms) -> AccountRead {
        let newest = self.newest();
        newest.machine.read(terms, newest.head.time)
    }

    /// Hash of the newest block.
    #[must_use]
    pub fn tip(&self) -> Hash {
        self.newest().head.hash
    }
}
