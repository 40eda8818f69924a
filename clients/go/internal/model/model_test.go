package model_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"fedstream/client/internal/model"
	"fedstream/client/internal/vectors"
)

// row reads the values of a tensor in a vector into these places.
func row(t *testing.T, tensor []json.RawMessage, places ...any) {
	t.Helper()
	for i, place := range places {
		if err := json.Unmarshal(tensor[i], place); err != nil {
			t.Fatal(err)
		}
	}
}

func TestModelsAreDescribedAsTheVectorsSay(t *testing.T) {
	for _, vector := range vectors.Read(t, "models.txt") {
		t.Run(vector.Text(t, "case"), func(t *testing.T) {
			var tensors [][]json.RawMessage
			vector.Into(t, "tensors", &tensors)
			var entries []model.Entry
			for _, tensor := range tensors {
				var spec model.Spec
				var values string
				row(t, tensor, &spec.Name, &spec.DType, &spec.Shape, &values)
				entries = append(entries, model.EntryOf(spec, vectors.Hex(t, values)))
			}
			digest := model.DigestOf(entries)
			if text := model.CanonicalModel(entries); text != vector.Text(t, "canonical") {
				t.Errorf("described as %q", text)
			}
			if digest.SHA256.String() != vector.Text(t, "sha256") || digest.Size != vector.Number(t, "size_bytes") {
				t.Errorf("named %v", digest)
			}
		})
	}
}

func TestSchemasAndMeaningsAreDescribedAsTheVectorsSay(t *testing.T) {
	for _, vector := range vectors.Read(t, "schemas.txt") {
		t.Run(vector.Text(t, "case"), func(t *testing.T) {
			text := ""
			if vector.Has("tensors") {
				text = model.CanonicalSchema(schema(t, vector))
			} else {
				meaning := meaning(t, vector)
				text = model.CanonicalMeaning(meaning)
				if read, err := model.ParseMeaning(text); err != nil || !reflect.DeepEqual(read, meaning) {
					t.Errorf("read back as %v, %v", read, err)
				}
			}
			if text != vector.Text(t, "canonical") || model.Sum([]byte(text)).String() != vector.Text(t, "sha256") {
				t.Errorf("described as %q", text)
			}
		})
	}
}

func schema(t *testing.T, vector vectors.Case) []model.Spec {
	var tensors [][]json.RawMessage
	vector.Into(t, "tensors", &tensors)
	var specs []model.Spec
	for _, tensor := range tensors {
		var spec model.Spec
		row(t, tensor, &spec.Name, &spec.DType, &spec.Shape, &spec.Trainable, &spec.Role)
		specs = append(specs, spec)
	}
	return specs
}

func meaning(t *testing.T, vector vectors.Case) model.Meaning {
	meaning := model.Meaning{
		PositiveClass: vector.Text(t, "positive_class"), Preprocessing: vector.Text(t, "preprocessing"),
	}
	vector.Into(t, "class_names", &meaning.ClassNames)
	return meaning
}

func TestSizeThatOverflowsIsNone(t *testing.T) {
	for _, shape := range [][]uint64{{1 << 62}, {1 << 32, 1 << 32}, {1<<64 - 1, 3}} {
		if size, fits := model.SizeOf("F32", shape); fits {
			t.Errorf("%v has %d bytes", shape, size)
		}
	}
}
