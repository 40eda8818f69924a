package session

import (
	"context"
	"time"

	"fedstream/client/internal/limits"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/wire"
	"fedstream/client/internal/work"
)

const (
	// Part of a lease after which it is renewed: two signs of life may be lost before the third is due.
	leaseShare = 3
	// Least time between two signs of progress that is news, where the lease is not much shorter.
	pause = time.Second

	mostLook = 50 * time.Millisecond
)

// lease is a claim on one offer: how long it lasts, and what was told last.
type lease struct {
	offerID string
	lasts   time.Duration
	told    int // the change that was told; none at first
	toldAt  time.Time
}

func (s *Session) begin(offerID string, lasts time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lease = &lease{offerID: offerID, lasts: lasts, told: -1}
}

func (s *Session) renew(offerID string, lasts time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease != nil && s.lease.offerID == offerID && lasts > 0 {
		s.lease.lasts = lasts
	}
}

// keepLease tells how the agreed work goes: when it got on, and often enough to keep the lease. It ends with ctx or the
// stream, or gives a Stop when the work is hopeless.
func (s *Session) keepLease(ctx context.Context) error {
	ticker := time.NewTicker(mostLook)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		hopeless := s.Bench.CheckHealth() // first, so that the failure it is about is told before the good-bye
		if message := s.due(); message != nil {
			if err := s.send(message); err != nil {
				return hopeless // where it is nil, the listener hears why
			}
		}
		if hopeless != nil {
			s.Leave(hopeless.Error())
			return hopeless
		}
	}
}

// due gives what is to be told now, if anything.
func (s *Session) due() *pb.NegotiateRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lease == nil {
		return nil
	}
	job := s.Bench.Job(s.lease.offerID)
	if job == nil {
		s.lease = nil
		return nil
	}
	if state, reason := job.State(); state != work.Working {
		s.lease = nil
		if state == work.Failed {
			return failure(job.Offer.ID, reason)
		}
		return nil
	}
	progress, change := job.Progress()
	renewal := s.lease.lasts / leaseShare
	wait := renewal
	if change != s.lease.told {
		wait = min(pause, renewal/2)
	}
	if time.Since(s.lease.toldAt) < wait {
		return nil
	}
	s.lease.told, s.lease.toldAt = change, time.Now()
	return &pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Progress{Progress: writeProgress(job.Offer.ID, progress)}}
}

func writeProgress(offerID string, progress work.Progress) *pb.Progress {
	return &pb.Progress{
		OfferId:  offerID,
		Phase:    progress.Phase,
		Epoch:    progress.Epoch,
		Epochs:   progress.Epochs,
		Fraction: min(max(progress.Fraction, 0), 1),
		Metrics:  wire.WriteMetrics(progress.Metrics),
	}
}

func failure(offerID, reason string) *pb.NegotiateRequest {
	said := &pb.Failure{OfferId: offerID, Reason: limits.ClipReason(reason)}
	return &pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Failure{Failure: said}}
}

func decline(offerID, reason string) *pb.NegotiateRequest {
	said := &pb.Refusal{OfferId: offerID, Reason: limits.ClipReason(reason)}
	return &pb.NegotiateRequest{Kind: &pb.NegotiateRequest_Decline{Decline: said}}
}
