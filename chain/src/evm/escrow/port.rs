//! [`EvmEscrow`] as the payment port: each read and each write as a call of the contract.

use alloy::{eips::BlockId, providers::Provider, sol_types::SolCall};
use leasehold_crds::payment::money::TokenAmount;
use leasehold_planner::{
    escrow::{AccountAt, Address, Hash, Terms},
    ports::{
        AcceptanceMessage, Balances, BlockLevel, Cursor, Head, Opened, PaymentError, Payments, Receipt,
        SigningKey,
    },
};

use super::{
    abi::{Escrow, Token, narrow, to_evm, to_u40},
    acceptance, events,
    reads::ACCOUNTS_PER_VIEW,
};
use crate::evm::{Calls, EvmEscrow, Inner, address_of, signer};

impl Payments for EvmEscrow {
    async fn head(&self) -> Result<Head, PaymentError> {
        self.0.heads.read((), self.clone().read_head_batch()).await
    }

    async fn balances(&self, owner: Address) -> Result<Balances, PaymentError> {
        let Inner { rpc, token, .. } = &*self.0;
        rpc.verify_chain_id().await?;
        let owner = to_evm(owner);
        let balance = Token::balanceOfCall { owner };
        let (token, gas) = tokio::try_join!(
            rpc.view_of(*token, &balance, BlockId::latest()),
            rpc.request(rpc.provider.get_balance(owner)),
        )?;
        Ok(Balances {
            token: TokenAmount(narrow(token)?),
            gas_wei: narrow(gas)?,
        })
    }

    async fn account(&self, terms: &Terms, level: BlockLevel) -> Result<AccountAt, PaymentError> {
        match level {
            BlockLevel::Latest => {
                let batch = self.clone().read_account_batch();
                self.0.accounts.read(terms.clone(), batch).await
            }
            BlockLevel::Safe | BlockLevel::Finalized => self.account_at(terms, level).await,
        }
    }

    async fn accounts(&self, terms: &[Terms], level: BlockLevel) -> Result<Vec<AccountAt>, PaymentError> {
        let block = self.0.rpc.newest(level).await?;
        let mut reads = Vec::with_capacity(terms.len());
        for part in terms.chunks(ACCOUNTS_PER_VIEW) {
            reads.extend(self.snapshots(part, block).await?);
        }
        Ok(reads)
    }

    async fn find(&self, id: Hash) -> Result<(Head, Option<Opened>), PaymentError> {
        events::find(&self.0.rpc, self.0.escrow, id).await
    }

    async fn opened_since(
        &self,
        market: Address,
        cursor: Option<Cursor>,
    ) -> Result<(Vec<Opened>, Cursor), PaymentError> {
        events::opened_since(&self.0.rpc, self.0.escrow, market, cursor).await
    }

    async fn open(
        &self,
        key: &SigningKey,
        terms: &Terms,
        deposit: TokenAmount,
        valid_until: u64,
    ) -> Result<Receipt, PaymentError> {
        let (encoded, valid) = (Escrow::Terms::from(terms), to_u40(valid_until));
        let open = |deposit| Escrow::openCall {
            terms: encoded.clone(),
            deposit,
            validUntil: valid,
        };
        let calls = Calls {
            plain: open(deposit.0).abi_encode().into(),
            dry: open(0).abi_encode().into(),
            with_permit: Box::new({
                let terms = encoded.clone();
                move |permit| {
                    Escrow::openWithPermitCall {
                        terms: terms.clone(),
                        deposit: deposit.0,
                        validUntil: valid,
                        permit,
                    }
                    .abi_encode()
                    .into()
                }
            }),
        };
        self.pay(key, "open", terms.id(), deposit, calls).await
    }

    async fn fund_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        total: TokenAmount,
    ) -> Result<Option<Receipt>, PaymentError> {
        let encoded = Escrow::Terms::from(terms);
        let fund = |total| Escrow::fundToCall {
            terms: encoded.clone(),
            totalDeposited: total,
        };
        let mut missing_before = None;
        loop {
            let read = self.account_at(terms, BlockLevel::Latest).await?;
            // For an account that does not match the terms or is closed, the contract itself returns the precise
            // error.
            let deposited = match read.present() {
                Some(account) if !account.closed => account.deposited,
                Some(_) | None => TokenAmount(0),
            };
            let open = read.present().is_some_and(|account| !account.closed);
            let missing = TokenAmount(total.0.saturating_sub(deposited.0));
            if open && missing.0 == 0 {
                return Ok(None);
            }
            let calls = Calls {
                plain: fund(total.0).abi_encode().into(),
                dry: fund(0).abi_encode().into(),
                with_permit: Box::new({
                    let terms = encoded.clone();
                    move |permit| {
                        Escrow::fundToWithPermitCall {
                            terms: terms.clone(),
                            totalDeposited: total.0,
                            permit,
                        }
                        .abi_encode()
                        .into()
                    }
                }),
            };
            match self.pay(key, "fundTo", terms.id(), missing, calls).await {
                // Another operator with this key may have funded the account meanwhile, with the same tokens.
                Err(PaymentError::InsufficientTokens { .. }) if missing_before != Some(missing) => {
                    missing_before = Some(missing);
                }
                done => return done.map(Some),
            }
        }
    }

    async fn start(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::startCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "start", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn pause(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::pauseCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "pause", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn credit_to(
        &self,
        key: &SigningKey,
        terms: &Terms,
        leg: u8,
        total_seconds: u64,
    ) -> Result<Receipt, PaymentError> {
        let call = Escrow::creditToCall {
            terms: terms.into(),
            leg,
            creditedTotal: to_u40(total_seconds),
        };
        self.act(key, "creditTo", terms.id(), 1, call.abi_encode()).await
    }

    async fn end_leg(&self, key: &SigningKey, terms: &Terms, legs: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::endLegCall {
            terms: terms.into(),
            legs,
        };
        self.act(key, "endLeg", terms.id(), legs.count_ones(), call.abi_encode())
            .await
    }

    async fn settle_many(&self, key: &SigningKey, rows: &[(Terms, u16)]) -> Result<Receipt, PaymentError> {
        let call = Escrow::settleManyCall {
            terms: rows.iter().map(|(terms, _)| terms.into()).collect(),
            legs: rows.iter().map(|(_, legs)| *legs).collect(),
        };
        let first = rows.first().map_or(Hash::default(), |(terms, _)| terms.id());
        let legs = rows.iter().map(|(_, legs)| legs.count_ones()).sum();
        self.act(key, "settleMany", first, legs, call.abi_encode()).await
    }

    async fn close(&self, key: &SigningKey, terms: &Terms, payouts: u16) -> Result<Receipt, PaymentError> {
        let call = Escrow::closeCall {
            terms: terms.into(),
            payouts,
        };
        self.act(
            key,
            "close",
            terms.id(),
            1 + payouts.count_ones(),
            call.abi_encode(),
        )
        .await
    }

    async fn withdraw_credit(&self, key: &SigningKey, to: Address) -> Result<Receipt, PaymentError> {
        let call = Escrow::withdrawCreditCall {
            token: self.0.token,
            to: to_evm(to),
        };
        self.act(key, "withdrawCredit", Hash::default(), 1, call.abi_encode())
            .await
    }

    fn address_of(&self, key: &SigningKey) -> Result<Address, PaymentError> {
        address_of(key)
    }

    fn sign_acceptance(
        &self,
        key: &SigningKey,
        acceptance: &AcceptanceMessage,
    ) -> Result<[u8; 65], PaymentError> {
        acceptance::sign(&signer(key)?, &self.0.acceptances, acceptance)
    }

    fn acceptance_signer(&self, acceptance: &AcceptanceMessage, signature: &[u8; 65]) -> Option<Address> {
        acceptance::signer(&self.0.acceptances, acceptance, signature)
    }
}
