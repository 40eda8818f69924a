package session

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"fedstream/client/internal/codec"
	"fedstream/client/internal/limits"
	"fedstream/client/internal/logs"
	"fedstream/client/internal/pb"
	"fedstream/client/internal/transfer"
	"fedstream/client/internal/wire"
	"fedstream/client/internal/work"
)

// readTerms reads a welcome. Encodings that are not known here are left out; raw remains.
func readTerms(welcome *pb.Welcome) transfer.Terms {
	terms := transfer.Terms{MaxChunkBytes: limits.DefaultChunkBytes, WindowBytes: limits.WindowBytes}
	if bytes := welcome.GetMaxChunkBytes(); bytes > 0 {
		terms.MaxChunkBytes = int(min(bytes, limits.MaxChunkBytes))
	}
	if bytes := welcome.GetWindowBytes(); bytes > 0 {
		terms.WindowBytes = int(bytes)
	}
	for _, encoding := range welcome.GetEncodings() {
		if codec.Word(encoding) != "" && len(terms.Encodings) < len(codec.All()) {
			terms.Encodings = append(terms.Encodings, encoding)
		}
	}
	return terms
}

func readOffer(offer *pb.Offer) (work.Offer, error) {
	base, err := wire.ReadDigest(offer.GetBaseModel().GetModelDigest())
	if err != nil {
		return work.Offer{}, errors.New("the offer names no base model")
	}
	plan, err := wire.ReadPlan(offer.GetPlan())
	if err != nil {
		return work.Offer{}, err
	}
	return work.Offer{
		ID:        offer.GetOfferId(),
		UploadID:  offer.GetUploadId(),
		Round:     offer.GetRound(),
		Base:      base.SHA256,
		Epochs:    plan.Epochs,
		Remaining: wire.ReadDuration(offer.GetTimeRemaining()),
	}, nil
}

func logRound(log *slog.Logger, outcome *pb.RoundOutcome) {
	facts := []any{"round", outcome.GetRound(), "succeeded", outcome.GetSucceeded(), "because", outcome.GetReason()}
	if outcome.GetOutcome() != pb.Outcome_OUTCOME_UNSPECIFIED {
		facts = append(facts, "our_part", strings.ToLower(strings.TrimPrefix(outcome.GetOutcome().String(), "OUTCOME_")))
	}
	if outcome.GetOutcomeReason() != "" {
		facts = append(facts, "our_part_because", outcome.GetOutcomeReason())
	}
	if metrics, err := wire.ReadMetrics(outcome.GetMetrics()); err == nil { // they are for people
		facts = append(facts, logs.Metrics(metrics)...)
	}
	if outcome.GetSucceeded() {
		log.Info("round over", facts...)
	} else {
		log.Warn("round over", facts...)
	}
}

// describeDeclined says why the server declined this client, and what differs, for its operator.
func describeDeclined(declined *pb.Declined) string {
	lines := []string{"the server declined this client: " + declined.GetMessage()}
	for _, one := range declined.GetDifferences()[:min(len(declined.GetDifferences()), 20)] {
		lines = append(lines, fmt.Sprintf("  the federation has %s, this client %s", shown(one.GetServer()), shown(one.GetClient())))
	}
	if more := declined.GetMoreDifferences(); more > 0 {
		lines = append(lines, fmt.Sprintf("  and %d more", more))
	}
	if meaning := declined.GetServerMeaning(); meaning != nil {
		lines = append(lines, "  the federation means "+meaningText(meaning))
	}
	if meaning := declined.GetClientMeaning(); meaning != nil {
		lines = append(lines, "  this client means "+meaningText(meaning))
	}
	return strings.Join(lines, "\n")
}

func meaningText(message *pb.TaskMeaning) string {
	meaning, err := wire.ReadMeaning(message)
	if err != nil {
		return "what cannot be shown: " + err.Error()
	}
	text, _ := json.Marshal(meaning) // texts can always be written
	return string(text)
}

func shown(spec *pb.TensorSpec) string {
	if spec == nil {
		return "nothing"
	}
	kind := "frozen"
	if spec.GetTrainable() {
		kind = "trainable"
	}
	lengths := make([]string, len(spec.GetShape()))
	for i, length := range spec.GetShape() {
		lengths[i] = fmt.Sprint(length)
	}
	return fmt.Sprintf("%s %s [%s] %s", spec.GetName(), spec.GetDtype(), strings.Join(lengths, ","), kind)
}
